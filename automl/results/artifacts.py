"""Adapters of finished trials: which trial's, and its folder, on this machine or where the study has stored it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automl import ranking
from automl.errors import SearchError
from automl.metric import METRICS
from automl.space.spec import SweepSpec
from automl.storage.base import ResultStore
from automl.storage.depot import Depot
from automl.storage.sql import Database
from automl.storage.trials import TrialRow, list_trials
from automl.study.retention import ADAPTER
from automl.trial import TrialState

STORED = "stored"
"""Event of the study: `url`, and `adapters`: by number of the trial, the name below the URL and the sha256.

`squeezed`, if the winner was cut smaller: trial, name and sha256 of that.
"""


def complete_trial(database: Database, spec: SweepSpec, trial: int | None) -> TrialRow:
    """The trial of that number (None: the best), complete and with an adapter. Raises SearchError if it is not."""
    rows = list_trials(database, spec.study)
    if trial is None:
        winner = ranking.best(rows, METRICS[spec.task.metric].direction)
        if winner is None:
            raise SearchError(f"study {spec.study!r} has no complete trial yet")
        return winner
    found = next((row for row in rows if row.number == trial), None)
    if found is None or found.state != TrialState.COMPLETE:
        state = "does not exist" if found is None else f"is {found.state}"
        raise SearchError(f"trial {trial} of study {spec.study!r} {state}; only complete trials can be exported")
    if not found.adapter:
        raise SearchError(
            f"the adapter of trial {trial} is no longer kept (search.keep: {spec.search.keep}); export one of the best"
        )
    return found


def adapter_digest(database: Database, study: str, trial: int) -> str:
    """sha256 of the trial's adapter as it was recorded, empty if none was."""
    kept = database.store(study).artifacts(include_deleted=True)
    return next((each.sha256 for each in kept if (each.trial, each.kind) == (trial, ADAPTER)), "")


@contextmanager
def adapter_of(database: Database, spec: SweepSpec, row: TrialRow) -> Iterator[Path]:
    """The folder of the trial's adapter; fetched from where the study stores its artifacts if it is not here."""
    folder = Path(row.adapter or "")
    if row.adapter and folder.is_dir():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="automl-") as place:
        fetched = Path(place) / folder.name
        fetch_adapter(database.store(spec.study), row.number, fetched)
        yield fetched


def fetch_adapter(store: ResultStore, trial: int, folder: Path) -> None:
    """Make `folder` a copy of the trial's stored adapter.

    Raises SearchError if it was never stored, ResourceError if it cannot be read, CheckpointError if it is damaged.
    """
    stored = store.last_event(STORED) or {}
    found = stored.get("adapters", {}).get(str(trial))
    if found is None:
        raise SearchError(f"the adapter of trial {trial} is not on this machine, and was not stored anywhere else")
    Depot(stored["url"]).fetch_folder(found["name"], folder, sha256=found["sha256"])
