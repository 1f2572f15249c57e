"""What to advise when the space file is not the one that a study was started with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from automl.errors import SpaceChangedError
from automl.results.recorded import recorded_space
from automl.space.spec import SweepSpec
from automl.storage.spending import spent_by
from automl.storage.sql import Database
from automl.study.continuing import objectives_of, refuse_unfit


def advise(database: Database, spec: SweepSpec) -> str:
    """How to go on: `--allow-space-change` is named only where it can work, else what is in its way."""
    if missing := next(_missing(spec), None):
        return f"{missing} does not exist"
    return hindrance(database, spec) or "give the study a new name, or continue it with --allow-space-change"


def hindrance(database: Database, spec: SweepSpec) -> str:
    """Why the study that is in the database cannot go on with this file at all; empty if it can, or is not there."""
    objectives, directions = objectives_of(spec)
    space = recorded_space(database.store(spec.study), spec)
    try:
        refuse_unfit(database.optuna_storage(), spec.study, space=space, objectives=objectives, directions=directions)
    except SpaceChangedError as reason:
        return str(reason)
    return _other_currency(database, spec)


def _other_currency(database: Database, spec: SweepSpec) -> str:
    """Money in two currencies cannot be added."""
    cost, paid = spec.search.budget.cost, spent_by(database, [spec.study])[spec.study].currency
    if cost is None or paid in (None, cost.currency):
        return ""
    return (
        f"study {spec.study!r} was paid for in {paid}, and search.budget.cost.currency is {cost.currency};"
        f" write the price and its limit in {paid}, or choose another study name"
    )


def _missing(spec: SweepSpec) -> Iterator[str]:
    """Files and folders of the model and the data that are not there."""
    model = spec.model
    sources = {"task.data": spec.task.data, **({"keep.data": spec.keep.data} if spec.keep else {})}
    for key, data in ((key, place) for key, settings in sources.items() for place in settings.places):
        named = dict(data.files) if data.kind == "files" else {"folder": data.location} if data.kind == "folder" else {}
        yield from (f"{key}: {path}" for path in named.values() if not Path(path).exists())
    if model.kind in ("folder", "gguf") and not Path(model.location).exists():
        yield f"model: {model.location}"
    if model.adapter and not Path(model.adapter).exists():
        yield f"model.adapter: {model.adapter}"
