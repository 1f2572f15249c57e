"""Values of all trials at the rungs, ranked, and kept up to date by what has changed since the last look.

A policy is asked for every free place and by every idle worker, with all trials of the study. To read and sort them
each time takes a tenth of a second for 10,000 trials; what changes in between is a value or two.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from automl.metric import Direction, as_loss
from automl.study.outcome import direction_of


class Look:
    """Tells which trials have changed since the last look: those whose object is another one.

    Storages make a new object at each write (`CachedStorage` promises it), so the rest need not be read again.
    """

    def __init__(self) -> None:
        self._before: list[FrozenTrial] = []

    def changed(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """New and changed trials. trials: all of the study, in the same order as before."""
        before, self._before = self._before, list(trials)
        return [now for now, then in zip(trials, before, strict=False) if now is not then] + self._before[len(before) :]

    def is_of(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these may be the trials of the last look, and some more."""
        return len(trials) >= len(self._before)


class Ranking:
    """Trials at one rung by score, the best first; ties go to the lower number.

    standing: those that are not ended and have no later value, as (score, number).
    """

    def __init__(self) -> None:
        self.scores: dict[int, float] = {}
        self.standing: list[tuple[float, int]] = []
        self._all: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, number: int, score: float) -> None:
        """Count a trial that has reached the rung, from now on and whatever becomes of it."""
        self.scores[number] = score
        insort(self._all, (score, number))

    def place(self, number: int) -> int:
        """How many of all trials that ever reached the rung are better."""
        return bisect_left(self._all, (self.scores[number], number))

    def stand(self, number: int) -> None:
        """Note that the trial is here now."""
        insort(self.standing, (self.scores[number], number))

    def leave(self, number: int) -> None:
        """Note that the trial is not here any more."""
        del self.standing[bisect_left(self.standing, (self.scores[number], number))]


class Rung:
    """Losses at one rung: by trial, in ascending order, and ranked for each expected gain."""

    def __init__(self, gains: Sequence[float]) -> None:
        self.losses: dict[int, float] = {}
        self.ascending: list[float] = []
        self.rankings = {gain: Ranking() for gain in gains}


class Curves:
    """The values of a study's trials at the rungs. Values count as losses: a metric to maximise is negated.

    rungs: steps, ascending; an evaluation is `evaluate_every` steps. A score expects `gain` times what the last
    doubling brought once more: v[e] - gain * max(0, v[e // 2] - v[e]); without v[e // 2] it is v[e].
    """

    def __init__(self, rungs: Sequence[int], *, evaluate_every: int, gains: Sequence[float]) -> None:
        self._rungs = tuple(rungs)
        self._every = evaluate_every
        self._gains = tuple(gains)
        self._forget("minimize")

    def update(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> None:
        """Take in what has changed. trials: all of the study; those seen before are not changed in place."""
        towards = direction_of(direction)
        if towards != self._direction or not self._look.is_of(trials):
            self._forget(towards)
        fresh = self._look.changed(trials)
        if any(self._contradicts(trial) for trial in fresh):  # the trials of another study
            self._forget(towards)
            fresh = self._look.changed(trials)
        for trial in fresh:
            self._take(trial)

    def threshold(self, guard: float) -> float:
        """The median at the first rung less `guard` of its size; minus infinity while nobody has reached it."""
        first = self.at[self._rungs[0]].ascending
        if not first:
            return -math.inf
        median = statistics.median(first)
        return median - guard * abs(median)

    def unfinished(self, low: int, high: int) -> int:
        """Trials that have not ended and whose last step is in low ... high - 1; it is 0 for one without a value."""
        return sum(count for step, count in self._unfinished_at.items() if low <= step < high)

    def _forget(self, direction: Direction) -> None:
        self._direction = direction
        self._look = Look()
        self.at = {rung: Rung(self._gains) for rung in self._rungs}
        self.steps = self.first_steps = 0
        self.open: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._unfinished_at: Counter[int] = Counter()

    def _loss(self, value: float) -> float:
        return as_loss(value, self._direction)

    def _contradicts(self, trial: FrozenTrial) -> bool:
        curve = trial.intermediate_values
        entered = ((step, rung.losses[trial.number]) for step, rung in self.at.items() if trial.number in rung.losses)
        return any(step not in curve or self._loss(curve[step]) != loss for step, loss in entered)

    def _take(self, trial: FrozenTrial) -> None:
        number, reached = trial.number, trial.last_step or 0
        self._close(number)
        for step, rung in self.at.items():
            if step in trial.intermediate_values and number not in rung.losses:
                self._enter(number, step, trial.intermediate_values)
        before = self._reached.get(number, 0)
        self._reached[number] = reached
        self.steps += reached - before
        self.first_steps += min(reached, self._rungs[0]) - min(before, self._rungs[0])
        if not trial.state.is_finished():
            self._reopen(number, reached)

    def _enter(self, number: int, step: int, curve: Mapping[int, float]) -> None:
        rung, loss = self.at[step], self._loss(curve[step])
        half = self._loss(curve.get(step // self._every // 2 * self._every, curve[step]))
        rung.losses[number] = loss
        insort(rung.ascending, loss)
        for gain, ranking in rung.rankings.items():
            ranking.add(number, loss - gain * max(0.0, half - loss))

    def _reopen(self, number: int, reached: int) -> None:
        self.open[number] = reached
        self._unfinished_at[reached] += 1
        for ranking in self._rankings(reached):
            ranking.stand(number)

    def _close(self, number: int) -> None:
        reached = self.open.pop(number, None)
        if reached is not None:
            self._unfinished_at[reached] -= 1
            for ranking in self._rankings(reached):
                ranking.leave(number)

    def _rankings(self, step: int) -> list[Ranking]:
        return list(self.at[step].rankings.values()) if step in self.at else []


def rungs(evaluate_every: int, steps: int, first_rung: int) -> tuple[int, ...]:
    """Steps at which trials are compared, doubling from `first_rung` evaluations; the last one is `steps` itself."""
    doubling = (first_rung * evaluate_every * 2**power for power in range(64))
    return (*(rung for rung in doubling if rung < steps), steps)
