"""When a search asks for no new trials: a finite space is tried out, or the last trials have brought nothing better."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.metric import as_loss
from automl.ranking import Front, Point, point
from automl.storage.base import ResultStore
from automl.study.curves import Look
from automl.study.grid import Configurations
from automl.study.outcome import (
    BEST_CHECKPOINT,
    CONSTRAINT_OF,
    EXHAUSTED,
    STALLED,
    STOP_REASON,
    direction_of,
    exhausted_text,
)

logger = logging.getLogger(__name__)

_AT_THE_END = 0  # instead of a step: complete trials are compared with each other, whatever their last step was


class Stopping:
    """Whether a study asks for new trials. Once it does not it never does again, and its event log says why."""

    def __init__(
        self,
        study: optuna.Study,
        store: ResultStore,
        *,
        patience: int | None,
        configurations: Configurations | None,
        run: int,
    ) -> None:
        """configurations: those of a finite space, None if there is no end of them. run: number of this run."""
        self._study = study
        self._store = store
        self._run = run
        self._patience = patience
        self._stall = None if patience is None else Stall(study.directions, patience)
        self._configurations = configurations
        self._is_exhausted = False
        said = (detail for _, kind, detail in store.events() if kind == STALLED)
        self._is_stalled = any(detail.get("patience") == patience for detail in said)

    @property
    def is_over(self) -> bool:
        """Whether it has been found that no new trials are asked for."""
        return self._is_stalled or self._is_exhausted

    def is_exhausted(self) -> bool:
        """Whether every configuration of a finite space has had its trial."""
        known = self._configurations
        if known is None or self._is_exhausted or not known.are_exhausted(self._study):
            return self._is_exhausted
        self._is_exhausted = True
        count = len(known.feasible)
        self._store.add_event(EXHAUSTED, {"configurations": count, "run": self._run})
        logger.info("no new trials: %s", exhausted_text(count))
        return True

    def is_stalled(self, parked: Set[int]) -> bool:
        """Whether nothing better is to be expected, whatever the last promotions of parked trials bring."""
        if self._stall is None or self._is_stalled:
            return self._is_stalled
        self._is_stalled = self._stall.has_come(self._study.get_trials(deepcopy=False), parked)
        if self._is_stalled:
            self._store.add_event(STALLED, {"patience": self._patience, "run": self._run})
            logger.info("no new trials: the last %d brought nothing better (search.patience)", self._patience)
        return self._is_stalled


class Stall:
    """Whether the last `patience` trials of a study have brought nothing better.

    Trials count in the order in which they were created, once they are COMPLETE, PRUNED or parked. One has brought
    something better if no earlier trial is at least as good at equal steps: at its own last step, where the other has a
    value there, whatever came of it later. A COMPLETE trial whose best checkpoint counts is compared with COMPLETE ones
    by what they are worth. With two objectives: if no earlier COMPLETE trial is at least as good in both. Trials that
    failed do not count; nobody is compared with them, or with what diverged or ran out of memory.
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
        """The step at which a trial is compared."""
        if trial.state is TrialState.COMPLETE and (self._has_two or BEST_CHECKPOINT in trial.user_attrs):
            return _AT_THE_END
        return None if self._has_two else trial.last_step

    def _point(self, trial: FrozenTrial, step: int) -> Point | None:
        """The trial among others at a step: its loss, and what the earlier or the smaller one of equals wins by."""
        if trial.state is TrialState.FAIL or trial.user_attrs.get(STOP_REASON) in CONSTRAINT_OF:
            return None
        is_complete = trial.state is TrialState.COMPLETE
        if self._has_two:
            return point(trial.number, trial.values, self._direction) if is_complete else None
        if step == _AT_THE_END:
            value = trial.values[0] if is_complete else None
        else:
            value = trial.intermediate_values.get(step)
        return None if value is None else Point(as_loss(value, self._direction), trial.number, trial.number)
