"""The default pruner: ranks all trials that have a value at a rung, running ones included. Stop-only form.

Optuna's Median and Percentile pruners compare with COMPLETE trials only, so they are blind while the first trials run;
its successive halving decides by the order of asking. Trials here reach a step together, so the study stores all values
first and then asks this pruner, whose answer does not depend on the order. docs/adr/0004-peer-pruner.md has the
measurements behind the rule and its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from automl.study.curves import Curves, Rung, rungs

_GAIN = 0.5
"""Share of the last doubling's gain that a score expects again."""


class Verdict(NamedTuple):
    """Whether to stop a trial, and why or why not, for a person to read."""

    prune: bool
    reason: str


class PeerPruner(BasePruner):
    """Stop a trial at a rung unless it is among the best third of all trials that ever reached that rung.

    Rungs lie at first_rung, 2 * first_rung, 4 * first_rung ... evaluations, below the last one; an evaluation is
    `evaluate_every` steps. Values count as losses (a metric to maximise is negated). At rung e, n trials having a
    value there:

        score     = v[e] - max(0, v[e // 2] - v[e]) / 2   half of the last doubling's gain is expected again
        threshold = m - guard * abs(m)                    m: median value at the first rung, over the whole study
        n < min_peers                    too few to compare with: go on
        no value is below the threshold  nothing is known yet: at the first rung go on, later only the best goes on
        otherwise                        go on if the score is among the best ceil(n / reduction_factor) and the value
                                         below the threshold

    Nothing is known until some trial has left the crowd by `guard`, so nobody is stopped at the first rung for what may
    be chance; one that has not left it by the second rung must be the best to go on, or a space that mostly does not
    learn would use up the whole budget. Ties go to the lower trial number. The best trial of a rung always goes on, so
    some trial always reaches the last step. With m = 0 any value below 0 is past the threshold. The threshold is about
    values, not scores: a score expects more than has been reached, even an accuracy above 1, and would put the crowd of
    the first rung beyond the reach of trials that have learnt all there is.

    Every trial with a value counts, whatever became of it. Our rule: the rungs, the score and the guard are the
    stop-only form of the policy described in docs/adr/0004-peer-pruner.md, with its figures.
    """

    def __init__(
        self,
        *,
        evaluate_every: int,
        steps: int,
        first_rung: int = 2,
        reduction_factor: float = 3.0,
        min_peers: int = 4,
        guard: float = 0.01,
    ) -> None:
        """first_rung: evaluations, >= 1. reduction_factor: > 1. min_peers: >= 1, the trial included. guard: >= 0.

        Raises ValueError for anything else.
        """
        if first_rung < 1 or reduction_factor <= 1 or min_peers < 1 or guard < 0:
            raise ValueError(
                "peer needs first_rung >= 1, reduction_factor > 1, min_peers >= 1 and guard >= 0, but got"
                f" first_rung={first_rung}, reduction_factor={reduction_factor}, min_peers={min_peers}, guard={guard}"
            )
        self._evaluate_every = evaluate_every
        self._steps = steps
        self._first_rung = first_rung
        self._reduction_factor = reduction_factor
        self._min_peers = min_peers
        self._guard = guard
        self._curves = Curves(rungs(evaluate_every, steps, first_rung), evaluate_every=evaluate_every, gains=(_GAIN,))

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Optuna's question. Costs one look at each trial of the study at a rung, nothing between rungs."""
        if trial.last_step is None or not self.is_rung(trial.last_step):
            return False
        trials = [trial if other.number == trial.number else other for other in study.get_trials(deepcopy=False)]
        return self.judge(trial, trials, study.direction).prune

    def judge(self, trial: FrozenTrial, trials: Sequence[FrozenTrial], direction: StudyDirection) -> Verdict:
        """Judge a trial of a cohort, with a reason. trials: all of the study, this one included, as they are by now."""
        step = trial.last_step
        if step is None or not self.is_rung(step):
            return Verdict(prune=False, reason="not at a rung")
        self._curves.update(trials, direction)
        rung = self._curves.at[step]
        if len(rung.losses) < self._min_peers:
            return Verdict(prune=False, reason=f"{len(rung.losses)} peers at step {step}, fewer than {self._min_peers}")
        return self._compare(trial.number, rung, is_first=step == self._first_step)

    def is_rung(self, step: int) -> bool:
        """Whether trials are judged at this step."""
        rung, rest = divmod(step, self._first_step)
        return rest == 0 and 0 < step < self._steps and rung & (rung - 1) == 0

    @property
    def _first_step(self) -> int:
        return self._first_rung * self._evaluate_every

    def _compare(self, number: int, rung: Rung, *, is_first: bool) -> Verdict:
        ranking, threshold = rung.rankings[_GAIN], self._curves.threshold(self._guard)
        rank = 1 + ranking.place(number)
        place = f"rank {rank} of {len(ranking)} peers"
        if rung.ascending[0] >= threshold:
            if is_first:
                return Verdict(prune=False, reason=f"{place}; no trial stands out yet")
            return Verdict(prune=rank > 1, reason=f"{place}; no trial stands out, only the best goes on")
        if rank > math.ceil(len(ranking) / self._reduction_factor):
            return Verdict(prune=True, reason=place)
        stands_out = rung.losses[number] < threshold or rank == 1
        return Verdict(prune=not stands_out, reason=place if stands_out else f"{place}, but no better than the crowd")
