"""What a search leaves at `storage.artifacts`: kept adapters, the winner cut smaller, report and summary."""

from __future__ import annotations

from typing import Any

from automl import durable
from automl.errors import CheckpointError
from automl.report.render import FORMATS
from automl.report.write import REPORT
from automl.results.artifacts import STORED
from automl.results.folders import study_folder
from automl.results.summary import SUMMARY_JSON, SUMMARY_MARKDOWN
from automl.space.spec import SweepSpec
from automl.storage.artifacts import digest_folder, files_below
from automl.storage.base import ResultStore
from automl.storage.depot import Depot
from automl.study.retention import ADAPTER
from automl.trial_folders import squeezed_folder

_FILES = (SUMMARY_JSON, SUMMARY_MARKDOWN, *(f"{REPORT}{ending}" for ending in FORMATS.values()))


def store_results(store: ResultStore, spec: SweepSpec) -> None:
    """Copy what the study has kept to where `storage.artifacts` says; does nothing if that is not given.

    Raises ResourceError if that place cannot be written, CheckpointError if an adapter is not what was recorded, or
    the one that was cut is damaged.
    """
    if spec.artifacts is None:
        return
    depot = Depot(spec.artifacts)
    kept = [artifact for artifact in store.artifacts() if artifact.kind == ADAPTER]
    names = {
        artifact.trial: f"{spec.study}/adapters/trial-{artifact.trial:05d}-{artifact.sha256[:16]}" for artifact in kept
    }
    for artifact in kept:
        digest = depot.put_folder(names[artifact.trial], files_below(artifact.path))
        if digest.sha256 != artifact.sha256:
            raise CheckpointError(f"{artifact.path} is not what was recorded: sha256 {digest.sha256[:12]}")
    for file in (study_folder(spec) / name for name in _FILES):
        if file.is_file():
            depot.put_file(f"{spec.study}/{file.name}", file)
    adapters = {str(item.trial): {"name": names[item.trial], "sha256": item.sha256} for item in kept}
    detail: dict[str, Any] = {"url": depot.url, "adapters": adapters, **_squeezed(depot, spec)}
    if store.last_event(STORED) != detail:
        store.add_event(STORED, detail)


def _squeezed(depot: Depot, spec: SweepSpec) -> dict[str, Any]:
    """Copy the winner's adapter that was cut smaller, if there is one; returns where it is, as the event has it."""
    folder = squeezed_folder(study_folder(spec))
    if not folder.is_dir():
        return {}
    trial, digest = durable.verify_folder(folder)["trial"], digest_folder(folder)
    name = f"{spec.study}/squeezed/trial-{trial:05d}-{digest.sha256[:16]}"
    depot.put_folder(name, files_below(folder))
    return {"squeezed": {"trial": trial, "name": name, "sha256": digest.sha256}}
