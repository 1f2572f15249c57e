"""A job of the scheduler, step by step: processes to run one after the other, and what their end means.

The seam between `job_run` and the kinds of jobs there are: a night (`nights.py`), a submitted sweep (`submission.py`).
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from automl.durable import disk_errors_named, make_folder, replace_file
from automl.errors import ConfigError, InterruptedSearch, ResourceError, StorageError
from automl.space.load import DATABASE_VARIABLE
from automl.storage.base import RunEnd
from automl.storage.overview import study_totals
from automl.storage.runs import last_run
from automl.storage.sql import Database

SPACE_FILE = "space.yaml"
LOG_FILE = "search.log"

DONE = 0
USAGE = ConfigError.exit_code
STORAGE = StorageError.exit_code
INTERRUPTED = InterruptedSearch.exit_code
RESOURCES = ResourceError.exit_code
REGRESSION = 6

_NOTIFIERS = ("AUTOML_WEBHOOK_", "AUTOML_SMTP_")

AUTOML = (sys.executable, "-m", "automl.cli.main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how jobs run. url: the database's, with its secrets. folder: where relative paths of submissions
    begin. program: the command line that `search` is given to. address: the Ray cluster that submitted
    sweeps join, None = each starts a private one.
    """

    url: str
    folder: Path = field(default_factory=Path.cwd)
    program: Sequence[str] = AUTOML
    address: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the processes: has the database's address, which is nowhere else; lacks notifiers' secrets."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOTIFIERS)}
        return {**kept, DATABASE_VARIABLE: self.url}


class Step(NamedTuple):
    """One process: its command and the file its output goes to."""

    command: Sequence[str]
    log: Path


class Outcome(NamedTuple):
    """How a job ended, for those who are told. state: the final one. alert: whether somebody should look."""

    name: str
    state: str
    message: str
    alert: bool


class Job(ABC):
    """A job that this process has taken. study: what it searches, once that is known; database: where that is."""

    name: str
    study: str | None
    database: Database

    @abstractmethod
    def begin(self) -> list[Step]:
        """Prepare it; the processes to run one after the other, while each ends well. Raises AutomlError."""

    @abstractmethod
    def renew(self) -> bool:
        """Extend the lease; False if the job is this process's no longer."""

    @abstractmethod
    def seconds_left(self, now: datetime) -> float | None:
        """Seconds until its deadline; None if it has none."""

    @abstractmethod
    def give_back(self, message: str, *, wait_seconds: float, counts: bool) -> bool:
        """Let it be continued, by whoever takes it."""

    @property
    @abstractmethod
    def attempts(self) -> int:
        """How often it has been started."""

    @abstractmethod
    def address(self) -> str | None:
        """The Ray cluster that it joins; None if it joins none."""

    @abstractmethod
    def finish(self, exit_code: int, message: str) -> Outcome | None:
        """Record that its processes have ended; None if it is this process's no longer."""

    @abstractmethod
    def time_out(self) -> Outcome | None:
        """Record that it was stopped at its deadline; None if it is this process's no longer."""

    @abstractmethod
    def fail(self, exit_code: int | None, message: str) -> Outcome | None:
        """Record that it cannot be run, or not any more; None if it is this process's no longer."""


def was_cut_short(job: Job) -> bool:
    """Whether a search that says it was interrupted has more to do: not one whose own time or budget is spent."""
    run = last_run(job.database, job.study) if job.study else None
    return run is None or run.ended not in (RunEnd.TIME, RunEnd.BUDGET)


def trials_ended(job: Job) -> int:
    """Trials of its study that have ended so far."""
    return sum(each.ended for each in study_totals(job.database, [job.study] if job.study else []))


def is_worth_retrying(exit_code: int, *, joins: bool = False) -> bool:
    """Whether the same command may well succeed later: the database was away or busy, or something killed it.

    joins: it joins a Ray cluster, whose nodes may be on their way back.
    """
    return exit_code == STORAGE or (joins and exit_code == RESOURCES) or exit_code < 0 or exit_code > 128


def write_space(folder: Path, text: str) -> None:
    """Put a study's space file into its folder. Raises ResourceError."""
    with disk_errors_named(folder):
        make_folder(folder)
        replace_file(folder / SPACE_FILE, text.encode())
