"""The seam for results: what the study must be able to record beside Optuna's own tables.

All writes are idempotent upserts keyed by study name and trial number, so a replay after a crash changes nothing.
There is no foreign key into Optuna's tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from automl.trial import Measurement


class AttemptState(StrEnum):
    """What became of one hand-out of a trial to a worker."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"  # trial told COMPLETE or PRUNED from this attempt
    PARKED = "PARKED"
    FAILED = "FAILED"
    LOST = "LOST"  # worker or driver died
    INTERRUPTED = "INTERRUPTED"  # signal or wall clock; resumable


class RunEnd(StrEnum):
    """Why a run of a search ended."""

    FINISHED = "finished"  # its budget is spent, nothing is left to try, or nothing better came for long enough
    TIME = "time"  # its search.time is over
    BUDGET = "budget"  # its search.budget is spent
    STOPPED = "stopped"  # by a signal
    INTERRUPTED = "interrupted"  # its workers were lost: the cluster went away
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One hand-out of a trial. `number` counts from 1 per trial and is its fence."""

    trial: int
    number: int
    worker: int
    run: int
    state: AttemptState = AttemptState.RUNNING
    reason: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or folder the sweep produced. sha256 covers a folder's files by their manifest; bytes is the total."""

    trial: int
    kind: str  # "adapter"
    path: str
    sha256: str
    bytes: int
    metric: float | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """The study's row: what was asked for, by whom it is driven now, and where its files are.

    runs: those that have begun, refused ones not counted. identity: made with the study, another one for a study of the
    same name anywhere else; None until a version that knows it drives it. folder: where its files lie, None if unknown.
    """

    study: str
    space_text: str
    space_sha256: str
    provenance: Mapping[str, Any]
    runs: int = 0
    owner: str | None = None
    lease_until: datetime | None = None
    identity: str | None = None
    folder: str | None = None


class ResultStore(ABC):
    """Everything the project keeps beside Optuna's tables, for one database and one study."""

    @abstractmethod
    def sweep(self) -> SweepRow:
        """The study's row; raises StudyNotFoundError if there is none."""

    @abstractmethod
    def add_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Store every metric of every measurement in one transaction; a stored (trial, step) is kept as it is.

        Importances that they carry take the place of the trial's earlier ones; they are not read back here.
        """

    @abstractmethod
    def measurements(self, trial: int | None = None) -> list[Measurement]:
        """Measurements of one trial, or of all, ordered by trial and step."""

    @abstractmethod
    def start_attempt(self, trial: int, *, worker: int, run: int) -> Attempt:
        """Open the next attempt of the trial; attempts still RUNNING are closed as LOST first."""

    @abstractmethod
    def end_attempt(self, trial: int, state: AttemptState, reason: str) -> None:
        """Close the trial's running attempt, if there is one."""

    @abstractmethod
    def attempts(self, trial: int | None = None) -> list[Attempt]:
        """Attempts ordered by trial and number."""

    @abstractmethod
    def add_artifact(self, artifact: Artifact) -> None:
        """Record an artifact, replacing one of the same trial and kind."""

    @abstractmethod
    def delete_artifact(self, trial: int, kind: str) -> None:
        """Mark the artifact deleted (its row stays)."""

    @abstractmethod
    def artifacts(self, *, include_deleted: bool = False) -> list[Artifact]:
        """Artifacts ordered by trial and kind."""

    @abstractmethod
    def add_event(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Append to the study's event log; `detail` must be JSON without NaN."""

    @abstractmethod
    def last_event(self, kind: str) -> Mapping[str, Any] | None:
        """Detail of the latest event of this kind, None if there is none."""

    @abstractmethod
    def events(self) -> list[tuple[datetime, str, Mapping[str, Any]]]:
        """Events, oldest first."""
