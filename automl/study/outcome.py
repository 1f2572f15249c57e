"""How a trial can end, and what a study tells about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from optuna.study import StudyDirection

from automl.metric import Direction
from automl.trial import Scalar, StopReason, TrialState

STATE_OF: dict[StopReason, TrialState] = {
    StopReason.FINISHED: TrialState.COMPLETE,
    StopReason.PRUNED: TrialState.PRUNED,
    StopReason.DIVERGED: TrialState.PRUNED,
    StopReason.OOM: TrialState.PRUNED,
    StopReason.BUDGET: TrialState.PRUNED,  # FAIL if it has not reported, or would exceed the number of trials
    StopReason.INFEASIBLE: TrialState.FAIL,  # PRUNED if it was trained to its end
    StopReason.ERROR: TrialState.FAIL,
    StopReason.HOST_CRASH: TrialState.FAIL,
    StopReason.LOST: TrialState.FAIL,
}
"""State that a trial gets for the reason it ended."""

CONSTRAINT_OF: dict[StopReason, str] = {StopReason.DIVERGED: "finite", StopReason.OOM: "memory"}
"""Optuna constraint that a trial violates by ending so: it is infeasible, not unlucky, and the sampler steers away."""

MEASURED = "measured"
"""Optuna constraint that a trial violates, by how much, if its last measurement misses a constraint of the space."""

STALLED = "stalled"
"""Event: `search.patience` was exhausted."""
EXHAUSTED = "exhausted"
"""Event: every configuration of a finite space has been tried."""

BEST_CHECKPOINT = "best_checkpoint"
"""User attribute of a trial whose best checkpoint is what it is worth: step, metrics, reason, and the step `settled_at`
with whose measurement this was told."""

STOP_REASON = "stop_reason"
"""User attribute of an ended trial: why it ended."""

TRAINED_RATE = "trained_rate"
"""User attribute of an ended trial: its learning rate, where another number was searched."""

FAILURES = frozenset({StopReason.ERROR, StopReason.HOST_CRASH})
"""Reasons that count towards `max_failed_trials`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestTrial:
    """The best COMPLETE trial so far, as the driver knows it without reading the database."""

    number: int
    value: float
    params: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEvent:
    """Something happened to a trial: `kind` (started, continued, parked, or a StopReason) and one line of text."""

    kind: str
    trial: int
    text: str


def direction_of(direction: StudyDirection) -> Direction:
    """What Optuna calls it, as `automl.metric` calls it."""
    return next(name for name in get_args(Direction) if name == direction.name.lower())


def exhausted_text(configurations: int) -> str:
    """Why a search of a finite space has ended, in a few words."""
    return f"all {configurations:,} configurations of the space have been tried"
