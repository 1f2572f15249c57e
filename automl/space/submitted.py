"""Which space files may be submitted through the API: those that touch nothing but what the operator has laid out.

A submission is run by a scheduler, in its working folder. So paths must lie within that folder, the database is the
scheduler's, results go where it puts them, and no address of another machine is contacted. The scheduler asks again:
what it finds in the database may have been written past the API.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from automl.errors import ConfigError, Problem
from automl.metric import is_own
from automl.space.load import parse_space
from automl.space.spec import SweepSpec
from automl.space.yaml_nodes import read_document

SOURCE = "submission"
# A folder that does not exist: what a path resolves to tells whether it leaves its folder, and no file is looked for.
_FOLDER = Path("/automl/submission")
_SHOWN = 60


def validated(text: str) -> SweepSpec:
    """The meaning of a submitted space file. Raises ConfigError with all problems, at their lines where known."""
    spec = parse_space(text, SOURCE, _FOLDER)
    problems = [Problem(SOURCE, 0, 0, key, message) for key, message in _forbidden(spec)]
    if problems:
        raise ConfigError(problems)
    return spec


def _forbidden(spec: SweepSpec) -> Iterator[tuple[str, str]]:
    for key, path in _paths(spec):
        if not Path(path).is_relative_to(_FOLDER):
            yield key, "a submitted sweep may only name files below the scheduler's folder, by a relative path"
    output = spec.run.output
    if output.is_absolute() or ".." in output.parts or (output.parts[:1] and output.parts[0].startswith("~")):
        yield "run.output", f"{_shown(str(output))} is not a relative path below the scheduler's folder"
    if any(map(is_own, spec.task.measured)):
        yield "task.metric", "a submitted sweep runs no program or function of its own; use a metric by its name"
    if spec.run.address is not None:
        yield "run.address", "a submitted sweep runs where the scheduler does; leave it out"
    if spec.artifacts is not None:
        yield "storage.artifacts", "a submitted sweep leaves its results where the scheduler does; leave it out"
    document = read_document(spec.text, SOURCE).value
    storage = document.get("storage") if isinstance(document, dict) else None
    if isinstance(storage, dict) and storage.get("url") is not None:
        yield "storage.url", "a submitted sweep is kept in the dashboard's own database; leave it out"


def _paths(spec: SweepSpec) -> Iterator[tuple[str, str]]:
    if spec.model.kind in ("folder", "gguf"):
        yield "model", spec.model.location
    if spec.model.adapter:
        yield "model.adapter", spec.model.adapter
    named = {"task.data": spec.task.data} | ({"keep.data": spec.keep.data} if spec.keep is not None else {})
    for key, settings in named.items():
        for data in settings.places:
            if data.kind == "folder":
                yield key, data.location
            yield from ((f"{key}.{split}", path) for split, path in data.files.items())


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
