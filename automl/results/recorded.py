"""What a sweep notes in the study's event log, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automl.results.folders import within
from automl.space.defaults import TARGETS, resolve
from automl.space.length import with_recorded_length
from automl.space.load import parse_space
from automl.space.spec import SearchSettings, SearchSpace, SweepSpec
from automl.storage.base import ResultStore
from automl.storage.sql import Database

GROUND = "ground"
"""Fingerprints of model and data, precision, size and target sets of the model, rows by split, rules by which the data
was read and what there was to say of it; workers and threads, slots, kernel."""
BASELINE = "baseline"
"""Metrics without any training."""
TABLE = "table"
"""Instead of `ground`: sha256 of the table of curves, its size, and its columns, which are what is searched."""
WORKERS = "workers"
"""How the time of every start of every worker was spent: `starts`, each with worker, epoch, busy and idle seconds."""


def recorded_spec(database: Database, study: str) -> SweepSpec:
    """The study's space file as it was stored, with relative paths resolved where it lay, and its folder found."""
    store = database.store(study)
    row = store.sweep()
    source = Path(str(row.provenance.get("folder", ".")))
    written = parse_space(row.space_text, f"space of study {study}", source)
    spec = as_begun(written, store.last_event(GROUND))
    folder = recorded_folder(store)
    return spec if folder is None else within(spec, folder)


def recorded_folder(store: ResultStore) -> Path | None:
    """The folder in which the study's files lie; of a study of an older version, that of its adapters."""
    row = store.sweep()
    if row.folder is not None:
        return Path(row.folder)
    folders = [Path(each.path).parent.parent for each in store.artifacts(include_deleted=True)]
    return next((folder for folder in folders if folder.name == row.study), None)


def started_by(store: ResultStore) -> set[str]:
    """The drivers (`host:pid:random`) of all runs of the study."""
    return {str(detail.get("owner")) for _, kind, detail in store.events() if kind == "run_started"}


def as_begun(spec: SweepSpec, recorded: Mapping[str, Any] | None) -> SweepSpec:
    """The spec with the rules for data, and the steps of a trial, that the study began with.

    The rules are those of today, and the steps not known where the file says a length, if it has not begun.

    recorded: detail of the latest event `GROUND`. Studies that began before there were such versions have no number
    recorded: theirs are 1.
    """
    if recorded is None:
        return spec
    rules = int(recorded.get("rules", 1))
    keep = None if spec.keep is None else replace(spec.keep, rules=rules)
    search = with_recorded_length(spec.search, recorded)
    return replace(spec, task=replace(spec.task, rules=rules), keep=keep, search=search)


def recorded_baseline(store: ResultStore, metric: str) -> float | None:
    """The metric of the untrained model (or of the majority class), if a worker has measured it."""
    value = (store.last_event(BASELINE) or {}).get(metric)
    return None if value is None else float(value)


def recorded_space(store: ResultStore, spec: SweepSpec) -> SearchSpace:
    """The space with its automatic ranges filled in, as the study's first run saw the model."""
    if (table := store.last_event(TABLE)) is not None:
        return replace(spec.space, columns=tuple(table["columns"]))
    ground = store.last_event(GROUND)
    if ground is None:
        return spec.space
    target_sets = ground.get("target_sets", TARGETS)
    return resolve(spec.space, int(ground["model_parameters"]), recorded_search(store, spec).steps, target_sets)


def recorded_search(store: ResultStore, spec: SweepSpec) -> SearchSettings:
    """The search with the steps that its study began with, where the file says how long a trial is in other words."""
    return with_recorded_length(spec.search, store.last_event(GROUND) or {})
