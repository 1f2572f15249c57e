"""What a study may still spend: trials, training steps, failures. Arithmetic on its own counters."""

from __future__ import annotations

from collections import Counter

from automl.errors import SearchError
from automl.space.spec import SearchSettings
from automl.study.outcome import FAILURES
from automl.study.registry import refuse
from automl.study.work import NOTHING, Work
from automl.trial import StopReason, TrialState

INFEASIBLE_IN_A_ROW = 200
"""Trials that may violate a constraint one after another before the search gives up."""


class Budget:
    """Counts ended trials and steps of all runs, failures of this run. Trials in progress are told by the caller.

    A trial is only started, continued or promoted while `max_steps` leaves enough for it *and* for every running trial
    to reach the last step, so it is never exceeded and nobody is stopped in the middle because of it; what pruning
    saves is spent on further trials.
    """

    def __init__(self, settings: SearchSettings) -> None:
        """Raises ConfigError if `max_steps` is too small for a single trial."""
        if settings.max_steps is not None and settings.max_steps < settings.steps:
            raise refuse("max_steps", f"{settings.max_steps} is less than the {settings.steps} steps of one trial")
        self._settings = settings
        self.states: Counter[TrialState] = Counter()
        self.steps = 0
        self.work = NOTHING
        self.reached: Counter[int] = Counter()  # of all trials that were started, by their last step
        self._failed = 0
        self._infeasible = 0
        self._last_error = ""

    @property
    def counted(self) -> int:
        """Ended trials that count: COMPLETE and PRUNED."""
        return self.states[TrialState.COMPLETE] + self.states[TrialState.PRUNED]

    def started(self, reached: int = 0, work: Work = NOTHING) -> None:
        """Count one more trial, which has come this far."""
        self.steps += reached
        self.work = self.work.plus(work)
        self.reached[reached] += 1

    def advanced(self, before: int, reached: int) -> None:
        """Count the steps of a trial from one to another."""
        self.steps += reached - before
        self.reached[before] -= 1
        self.reached[reached] += 1

    def worked(self, more: Work) -> None:
        """Count what a trial was trained on beside what was counted of it before."""
        self.work = self.work.plus(more)

    def ended(self, trial: int, state: TrialState, reason: StopReason | None, error: str = "") -> None:
        """Count a trial that has ended; `error` is its traceback if it has one."""
        self.states[state] += 1
        self._infeasible = self._infeasible + 1 if reason is StopReason.INFEASIBLE else 0
        if reason in FAILURES:
            self._failed += 1
            self._last_error = f"trial {trial}: {last_line(error) or reason}"

    def start_run(self) -> None:
        """Begin a run: what was counted so far is of earlier ones, and their failures do not stop this one."""
        self._failed = self._infeasible = 0
        self._last_error = ""

    def trials_left(self, in_progress: int) -> int:
        """Trials that may still be created beside those in progress."""
        return self._settings.trials - self.counted - in_progress

    @property
    def steps_left(self) -> int | None:
        """Steps that `max_steps` leaves; None without that budget."""
        return None if self._settings.max_steps is None else max(0, self._settings.max_steps - self.steps)

    def affords(self, steps: int, reserved: int) -> bool:
        """Whether `max_steps` leaves `steps` more beside the `reserved` ones running trials may still need."""
        limit = self._settings.max_steps
        return limit is None or self.steps + reserved + steps <= limit

    def check(self) -> None:
        """Raise SearchError if too many trials have failed to go on."""
        limit = max(1, self._settings.max_failed_trials)
        if self._failed >= limit:
            last = f"; last: {self._last_error}" if self._last_error else ""
            raise SearchError(
                f"{self._failed} trials failed (max_failed_trials: {limit}){last}; once the cause is mended,"
                " the same command goes on"
            )

    def check_feasible(self, refusal: str) -> None:
        """Raise SearchError if the space seems to hold nothing that satisfies the constraints and fits into memory."""
        if self._infeasible >= INFEASIBLE_IN_A_ROW:
            raise SearchError(
                f"{self._infeasible} configurations in a row are infeasible, and the last one {refusal};"
                " widen the constraint or narrow the space"
            )


def last_line(text: str) -> str:
    """The last line that says something; in a traceback, the exception."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
