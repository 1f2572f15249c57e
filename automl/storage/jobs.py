"""What is kept of unattended work, as values: schedules, their nights, submitted sweeps, and who works them off.

A night is a firing: one row for each schedule and slot, written when the slot is due, whether or not it then runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

Overlap = Literal["skip", "queue"]
Cause = Literal["cron", "hand"]


class FiringState(StrEnum):
    """What became of one slot of a schedule."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"  # better than the night before beyond noise, or the first
    NO_IMPROVEMENT = "NO_IMPROVEMENT"  # finished, as good as the night before
    REGRESSION = "REGRESSION"  # finished, worse than the night before beyond noise
    FAILED = "FAILED"  # no usable result
    TIMED_OUT = "TIMED_OUT"  # stopped at its deadline
    MISSED = "MISSED"  # no scheduler was there in time
    SKIPPED = "SKIPPED"  # the night before had not ended, or a later slot took its place


class SubmissionState(StrEnum):
    """What became of a submitted sweep."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A cron expression, a time zone and the sweep it starts.

    folder: where relative paths of the space begin.
    fired_until: every slot up to this instant has its row.
    catch_up_seconds: how late a slot may still be run (None: however late).
    deadline_seconds: longest night.
    options: see docs/schedules.md.
    version: counts changes, for compare-and-set.
    """

    name: str
    cron: str
    timezone: str
    space_text: str
    folder: str
    is_paused: bool = False
    overlap: Overlap = "skip"
    catch_up_seconds: float | None = None
    deadline_seconds: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fired_until: datetime
    version: int = 0
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """One slot of a schedule. slot: the instant it was due.

    attempts: how often it was started. value: objective of its best trial. comparison: with the night before, see
    docs/schedules.md. exit_code: from the sweep's process, 6 for a regression.
    """

    schedule: str
    slot: datetime
    cause: Cause
    state: FiringState
    study: str | None
    attempts: int
    owner: str | None
    lease_until: datetime | None
    not_before: datetime | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    value: float | None
    comparison: Mapping[str, Any] | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A sweep that somebody has asked for through the API; a scheduler runs it."""

    id: str
    study: str
    space_text: str
    submitted_at: datetime
    submitted_by: str
    state: SubmissionState
    attempts: int
    owner: str | None
    lease_until: datetime | None
    not_before: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerRow:
    """A scheduler that is or was there. seconds_silent: since it was last heard of. running: what it works on."""

    owner: str
    started_at: datetime
    seen_at: datetime
    seconds_silent: float
    running: Sequence[str]
