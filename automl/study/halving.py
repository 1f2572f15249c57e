"""Asynchronous halving that pauses trials instead of stopping them, and spends half of its budget on new ones.

A trial trains to its next rung and is parked there. Whenever a place is free, the policy either starts a new trial or
promotes a parked one, so a decision is never final and needs no waiting: successive halving with promotion (ASHA, Li et
al. 2020) with three changes that each pay on recorded curves (docs/adr/0010-halving-pruner.md): a score that looks half
a doubling ahead, a guard against promoting what chance alone explains, and a fixed share of all training for new
trials.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from automl.study.parking import ParkingPruner
from automl.trial import Action, Decision

CLOSING_FACTOR = 2.2
"""Of the trials at a rung, the best 1 / CLOSING_FACTOR go on when no new one may start, if not even more do."""
_CLOSING_GAIN = 2.0
"""The expected gain is then that of a whole doubling: what counts is the last step, not where to spend the next one."""


class Candidate(NamedTuple):
    """A parked trial that may go on; the smallest is the best."""

    score: float
    number: int
    rung: int


class HalvingPruner(ParkingPruner):
    """Park every trial at every rung; promote the best parked ones.

    Rungs lie at first_rung, 2 * first_rung, 4 * first_rung ... evaluations and at the last step; an evaluation is
    `evaluate_every` steps. Values count as losses (a metric to maximise is negated):

        score     = v[e] - expected_gain * max(0, v[e // 2] - v[e])   what a further doubling is expected to bring
        threshold = m - guard * abs(m)                                m: median value at the first rung

    A free place gets a new trial as long as new trials (up to the first rung) have had at most `explore` of all steps,
    those that running trials are committed to included. Otherwise, at each rung, the parked trial with the best score
    may go on if it is among the best ceil(n / reduction_factor) of all n that ever reached that rung; of these the best
    score goes on, if its value is below the threshold. If none is, nothing has stood out so far and a new trial starts.

    When no new trial may start, promotion goes on without the guard and with a score that looks a whole doubling ahead;
    the best ceil(n / 2.2) of a rung go on, and at least `finalists`, so that the search ends with enough trials trained
    to the last step to choose from. Ties go to the lower trial number. Everything is computed from the values in the
    study: a driver that starts again decides as the one before would have.
    """

    def __init__(
        self,
        *,
        evaluate_every: int,
        steps: int,
        first_rung: int = 2,
        reduction_factor: float = 3.0,
        explore: float = 0.5,
        guard: float = 0.01,
        expected_gain: float = 0.5,
        finalists: int = 3,
    ) -> None:
        """first_rung, finalists: >= 1. reduction_factor: > 1. explore: in (0, 1]. guard, expected_gain: >= 0.

        Raises ValueError for anything else.
        """
        if (
            min(first_rung, finalists) < 1
            or reduction_factor <= 1
            or not 0 < explore <= 1
            or min(guard, expected_gain) < 0
        ):
            raise ValueError(
                "halving needs first_rung >= 1, finalists >= 1, reduction_factor > 1, 0 < explore <= 1, guard >= 0 and"
                f" expected_gain >= 0, but got first_rung={first_rung}, finalists={finalists},"
                f" reduction_factor={reduction_factor}, explore={explore}, guard={guard}, expected_gain={expected_gain}"
            )
        self._every = evaluate_every
        self._reduction_factor = reduction_factor
        self._explore = explore
        self._guard = guard
        self._expected_gain = expected_gain
        self._finalists = finalists
        self.rungs = rungs(evaluate_every, steps, first_rung)

    def horizon(self, step: int) -> int:
        """The next rung after `step`, or the last step."""
        return next((rung for rung in self.rungs if rung > step), self.rungs[-1])

    def decide(self, trial: FrozenTrial) -> Decision:
        """Park at a rung, go on between rungs."""
        step = trial.last_step or 0
        if step not in self.rungs:
            return Decision(trial=trial.number, action=Action.CONTINUE, reason="not at a rung")
        reason = f"rung {self.rungs.index(step) + 1} of {len(self.rungs)}"
        return Decision(trial=trial.number, action=Action.PARK, reason=reason)

    def promote(
        self, trials: Sequence[FrozenTrial], parked: Set[int], *, direction: StudyDirection, may_start: bool
    ) -> int | None:
        """The parked trial that should go on now; None if a new one should start, or if none is worth going on."""
        if may_start and self._owed_to_new(trials, parked):
            return None
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        curves = {
            trial.number: {step: sign * value for step, value in trial.intermediate_values.items()} for trial in trials
        }
        threshold = self._threshold(curves)
        best = list(self._best_of_each_rung(curves, parked, may_start=may_start))
        past = [candidate for candidate in best if curves[candidate.number][candidate.rung] < threshold]
        chosen = min(past if past or may_start else best, default=None)
        return None if chosen is None else chosen.number

    def _owed_to_new(self, trials: Sequence[FrozenTrial], parked: Set[int]) -> bool:
        first = self.rungs[0]
        spent = [self._committed(trial, parked) for trial in trials]
        return sum(min(steps, first) for steps in spent) <= self._explore * sum(spent)

    def _committed(self, trial: FrozenTrial, parked: Set[int]) -> int:
        """Steps a trial has had, up to its next rung if it is running."""
        reached = trial.last_step or 0
        is_running = not trial.state.is_finished() and trial.number not in parked
        return self.horizon(reached) if is_running else reached

    def _threshold(self, curves: Mapping[int, Mapping[int, float]]) -> float:
        first = [curve[self.rungs[0]] for curve in curves.values() if self.rungs[0] in curve]
        if not first:
            return -math.inf
        median = statistics.median(first)
        return median - self._guard * abs(median)

    def _best_of_each_rung(
        self, curves: Mapping[int, Mapping[int, float]], parked: Set[int], *, may_start: bool
    ) -> Iterator[Candidate]:
        least = 1 if may_start else self._finalists
        factor = self._reduction_factor if may_start else min(self._reduction_factor, CLOSING_FACTOR)
        gain = self._expected_gain * (1.0 if may_start else _CLOSING_GAIN)
        for rung in self.rungs[:-1]:
            ranked = sorted(
                Candidate(self._score(curve, rung, gain), number, rung)
                for number, curve in curves.items()
                if rung in curve
            )
            places = max(least, math.ceil(len(ranked) / factor))
            waiting = (
                candidate
                for candidate in ranked[:places]
                if candidate.number in parked and max(curves[candidate.number]) == rung
            )
            if (first := next(waiting, None)) is not None:
                yield first

    def _score(self, curve: Mapping[int, float], step: int, gain: float) -> float:
        value = curve[step]
        half = curve.get(step // self._every // 2 * self._every, value)
        return value - gain * max(0.0, half - value)


def rungs(evaluate_every: int, steps: int, first_rung: int) -> tuple[int, ...]:
    """Steps at which trials are parked, doubling from `first_rung` evaluations; the last one is `steps` itself."""
    doubling = (first_rung * evaluate_every * 2**power for power in range(64))
    return (*(rung for rung in doubling if rung < steps), steps)
