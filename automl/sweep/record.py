"""What a sweep notes in the study's event log, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from automl.space.defaults import resolve
from automl.space.spec import SearchSpace, SweepSpec
from automl.storage.base import ResultStore

GROUND = "ground"
"""Fingerprints of model and data, precision, size of the model, rows by split; workers and threads, slots, kernel."""
BASELINE = "baseline"
"""Metrics without any training."""
WORKERS = "workers"
"""How the time of every start of every worker was spent: `starts`, each with worker, epoch, busy and idle seconds."""


def last_event(store: ResultStore, kind: str) -> Mapping[str, Any] | None:
    """Detail of the latest event of this kind, or None."""
    found = [detail for _, event_kind, detail in store.events() if event_kind == kind]
    return found[-1] if found else None


def recorded_baseline(store: ResultStore, metric: str) -> float | None:
    """The metric of the untrained model (or of the majority class), if a worker has measured it."""
    value = (last_event(store, BASELINE) or {}).get(metric)
    return None if value is None else float(value)


def recorded_space(store: ResultStore, spec: SweepSpec) -> SearchSpace:
    """The space with its automatic ranges filled in, as the study's first run saw the model."""
    ground = last_event(store, GROUND)
    return spec.space if ground is None else resolve(spec.space, int(ground["model_parameters"]), spec.search.steps)
