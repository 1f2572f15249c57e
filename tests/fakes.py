"""Small real classes that stand in for heavy ones in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from automl.storage.base import Artifact, Attempt, AttemptState, ResultStore, SweepRow
from automl.trial import Measurement


class MemoryStore(ResultStore):
    """A result store in dictionaries: the contract of the SQL store, gone with the process."""

    def __init__(self, study: str = "study") -> None:
        self._study = study
        self._measurements: dict[tuple[int, int], Measurement] = {}
        self._attempts: dict[int, list[Attempt]] = {}
        self._artifacts: dict[tuple[int, str], Artifact] = {}
        self._events: list[tuple[datetime, str, Mapping[str, Any]]] = []

    def sweep(self) -> SweepRow:
        return SweepRow(study=self._study, space_text="", space_sha256="", provenance={})

    def add_measurements(self, measurements: Sequence[Measurement]) -> None:
        for measurement in measurements:
            self._measurements.setdefault((measurement.trial, measurement.step), measurement)

    def measurements(self, trial: int | None = None) -> list[Measurement]:
        return [stored for key, stored in sorted(self._measurements.items()) if trial in (None, key[0])]

    def start_attempt(self, trial: int, *, worker: int, run: int) -> Attempt:
        self.end_attempt(trial, AttemptState.LOST, "superseded by the next attempt")
        attempts = self._attempts.setdefault(trial, [])
        attempts.append(
            Attempt(trial=trial, number=len(attempts) + 1, worker=worker, run=run, started_at=datetime.now(UTC))
        )
        return attempts[-1]

    def end_attempt(self, trial: int, state: AttemptState, reason: str) -> None:
        attempts = self._attempts.get(trial, [])
        if attempts and attempts[-1].state is AttemptState.RUNNING:
            attempts[-1] = replace(attempts[-1], state=state, reason=reason, ended_at=datetime.now(UTC))

    def attempts(self, trial: int | None = None) -> list[Attempt]:
        return [attempt for key in sorted(self._attempts) if trial in (None, key) for attempt in self._attempts[key]]

    def add_artifact(self, artifact: Artifact) -> None:
        self._artifacts[artifact.trial, artifact.kind] = artifact

    def delete_artifact(self, trial: int, kind: str) -> None:
        artifact = self._artifacts.get((trial, kind))
        if artifact is not None and artifact.deleted_at is None:
            self._artifacts[trial, kind] = replace(artifact, deleted_at=datetime.now(UTC))

    def artifacts(self, *, include_deleted: bool = False) -> list[Artifact]:
        stored = (artifact for _, artifact in sorted(self._artifacts.items()))
        return [artifact for artifact in stored if include_deleted or artifact.deleted_at is None]

    def add_event(self, kind: str, detail: Mapping[str, Any]) -> None:
        self._events.append((datetime.now(UTC), kind, dict(detail)))

    def last_event(self, kind: str) -> Mapping[str, Any] | None:
        return next((detail for _, each, detail in reversed(self._events) if each == kind), None)

    def events(self) -> list[tuple[datetime, str, Mapping[str, Any]]]:
        return list(self._events)
