"""Patience: when a search may as well end, because the last trials have brought nothing better."""

from __future__ import annotations

from collections.abc import Sequence, Set

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.metric import as_loss
from automl.ranking import Front, Point, point
from automl.study.curves import Look
from automl.study.outcome import CONSTRAINT_OF, STOP_REASON, direction_of

_AT_THE_END = 0  # instead of a step: complete trials are compared with each other, whatever their last step was


class Stall:
    """Whether the last `patience` trials of a study have brought nothing better.

    Trials count in the order in which they were created, once they are COMPLETE, PRUNED or parked. One has brought
    something better if no earlier trial is at least as good at equal steps: at its own last step, where the other has a
    value there, whatever came of it later. With two objectives: if no earlier COMPLETE trial is at least as good in
    both. Trials that failed do not count; nobody is compared with them, or with what diverged or ran out of memory.
    """

    def __init__(self, directions: Sequence[StudyDirection], patience: int) -> None:
        self._direction = direction_of(directions[0])
        self._has_two = len(directions) > 1
        self._patience = patience
        self._look = Look()
        self._ended: set[int] = set()
        self._stands_at: dict[int, int] = {}
        self._fronts: dict[int, Front] = {}

    def has_come(self, trials: Sequence[FrozenTrial], parked: Set[int]) -> bool:
        """Whether it is so now. trials: all of the study, by number; those seen before are not changed in place."""
        for trial in self._look.changed(trials):
            self._take(trial, trials)
        counted = self._ended | (parked & self._stands_at.keys())
        for step in {self._stands_at[number] for number in counted & self._stands_at.keys()} - self._fronts.keys():
            self._compare_at(step, trials)
        better = (number for number in self._leaders() if number in counted)
        last = max(better, default=None)
        return last is not None and sum(number > last for number in counted) >= self._patience

    def _take(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> None:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._ended.add(trial.number)
        step = self._step(trial)
        if step is not None:
            self._stands_at[trial.number] = step
        for known, front in list(self._fronts.items()):
            point = self._point(trial, known)
            if point is not None:
                front.add(point)
            elif trial.number in front.trials:  # it was sound when it was measured there
                self._compare_at(known, trials)

    def _compare_at(self, step: int, trials: Sequence[FrozenTrial]) -> None:
        front = self._fronts[step] = Front()
        for trial in trials:
            point = self._point(trial, step)
            if point is not None:
                front.add(point)

    def _leaders(self) -> list[int]:
        """Trials that were better than all earlier ones at their last step."""
        return [
            number
            for step, front in self._fronts.items()
            for number in front.trials
            if self._stands_at.get(number) == step
        ]

    def _step(self, trial: FrozenTrial) -> int | None:
        """Where a trial is compared."""
        if self._has_two:
            return _AT_THE_END if trial.state is TrialState.COMPLETE else None
        return trial.last_step

    def _point(self, trial: FrozenTrial, step: int) -> Point | None:
        """The trial among others at a step: its loss, and what the earlier or the smaller one of equals wins by."""
        if trial.state is TrialState.FAIL or trial.user_attrs.get(STOP_REASON) in CONSTRAINT_OF:
            return None
        if self._has_two:
            is_complete = trial.state is TrialState.COMPLETE
            return point(trial.number, trial.values, self._direction) if is_complete else None
        value = trial.intermediate_values.get(step)
        return None if value is None else Point(as_loss(value, self._direction), trial.number, trial.number)
