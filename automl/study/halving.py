"""Asynchronous halving that pauses trials instead of stopping them, and spends half of its budget on new ones.

A trial trains to its next rung and is parked there. Whenever a place is free, the policy either starts a new trial or
promotes a parked one, so a decision is never final and needs no waiting: successive halving with promotion (ASHA, Li et
al. 2020) with three changes that each pay on recorded curves (docs/adr/0010-halving-pruner.md): a score that looks half
a doubling ahead, a guard against promoting what chance alone explains, and a fixed share of all training for new
trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from automl.study.curves import Curves, rungs
from automl.study.parking import ParkingPruner
from automl.trial import Action, Decision

CLOSING_FACTOR = 2.2
"""The best 1 / CLOSING_FACTOR of a rung's trials go on when no new one may start, if not even more do."""
_CLOSING_GAIN = 2.0
"""The expected gain is then that of a whole doubling: what counts is the last step, not where to spend the next one."""


class Candidate(NamedTuple):
    """A parked trial that may go on; the smallest is the best."""

    score: float
    number: int
    rung: int


class _Promotion(NamedTuple):
    """How trials are promoted: by a score that expects `gain`, the best one in `factor` of a rung, at least `least`."""

    gain: float
    factor: float
    least: int

    def places(self, trials: int) -> int:
        """How many of the trials that ever reached a rung may go on."""
        return max(self.least, math.ceil(trials / self.factor))


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
    study, of which ranked tables are kept: a driver that starts again decides as the one before would have.
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
        self._explore = explore
        self._guard = guard
        self._exploring = _Promotion(expected_gain, reduction_factor, 1)
        self._closing = _Promotion(expected_gain * _CLOSING_GAIN, min(reduction_factor, CLOSING_FACTOR), finalists)
        self.rungs = rungs(evaluate_every, steps, first_rung)
        gains = (self._exploring.gain, self._closing.gain)
        self._curves = Curves(self.rungs, evaluate_every=evaluate_every, gains=gains)

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
        self._curves.update(trials, direction)
        if may_start and self._owed_to_new(parked):
            return None
        policy = self._exploring if may_start else self._closing
        threshold = self._curves.threshold(self._guard)
        best = list(self._best_of_each_rung(policy, parked))
        past = [each for each in best if self._curves.at[each.rung].losses[each.number] < threshold]
        chosen = min(past if past or may_start else best, default=None)
        return None if chosen is None else chosen.number

    def hopeless(
        self,
        trials: Sequence[FrozenTrial],
        parked: Set[int],
        *,
        direction: StudyDirection,
        to_come: int,
        steps_left: int | None,
    ) -> list[int]:
        """Parked trials that stay outside of the places at their rung even if all that can still get there are worse.

        A trial's place never gets better, so those would be passed over to the end of the search.
        """
        self._curves.update(trials, direction)
        found: list[int] = []
        before = 0
        for rung in self.rungs[:-1]:
            coming = to_come + self._curves.unfinished(0, rung) - len(found)
            if steps_left is not None:
                coming = min(coming, self._curves.unfinished(before + 1, rung) + steps_left // (rung - before))
            found += self._hopeless_at(rung, parked, coming)
            before = rung
        return sorted(found)

    def _hopeless_at(self, rung: int, parked: Set[int], coming: int) -> Iterator[int]:
        rankings = self._curves.at[rung].rankings
        exploring, closing = rankings[self._exploring.gain], rankings[self._closing.gain]
        most = len(closing) + coming
        for _, number in reversed(closing.standing):
            if closing.place(number) < self._closing.places(most):
                break
            if number in parked and exploring.place(number) >= self._exploring.places(most):
                yield number

    def _owed_to_new(self, parked: Set[int]) -> bool:
        """Whether new trials have had less than their share, counting what running ones are committed to."""
        first, spent, new = self.rungs[0], self._curves.steps, self._curves.first_steps
        for number in self._curves.open.keys() - parked:
            reached = self._curves.open[number]
            committed = self.horizon(reached)
            spent += committed - reached
            new += min(committed, first) - min(reached, first)
        return new <= self._explore * spent

    def _best_of_each_rung(self, policy: _Promotion, parked: Set[int]) -> Iterator[Candidate]:
        for rung in self.rungs[:-1]:
            ranking = self._curves.at[rung].rankings[policy.gain]
            first = next(((score, number) for score, number in ranking.standing if number in parked), None)
            if first is not None and ranking.place(first[1]) < policy.places(len(ranking)):
                yield Candidate(*first, rung)
