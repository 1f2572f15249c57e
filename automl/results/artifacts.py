"""What a study has stored at `storage.artifacts`, and how an adapter is read back from there."""

from __future__ import annotations

from pathlib import Path

from automl.errors import SearchError
from automl.storage.base import ResultStore
from automl.storage.depot import Depot

STORED = "stored"
"""Event of the study: `url`, and `adapters`: by number of the trial, the name below the URL and the sha256."""


def fetch_adapter(store: ResultStore, trial: int, folder: Path) -> None:
    """Make `folder` a copy of the trial's stored adapter.

    Raises SearchError if it was never stored, ResourceError if it cannot be read, CheckpointError if it is damaged.
    """
    stored = store.last_event(STORED) or {}
    found = stored.get("adapters", {}).get(str(trial))
    if found is None:
        raise SearchError(f"the adapter of trial {trial} is not on this machine, and was not stored anywhere else")
    Depot(stored["url"]).fetch_folder(found["name"], folder, sha256=found["sha256"])
