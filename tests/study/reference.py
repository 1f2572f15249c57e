"""Policies written down as their rules read: every trial is looked at for each answer. Slow, and easy to check."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence, Set

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.study.curves import rungs
from automl.study.outcome import CONSTRAINT_OF, STOP_REASON

EVERY, STEPS = 10, 80
RUNGS = rungs(EVERY, STEPS, 2)
Losses = dict[int, dict[int, float]]


def losses(trials: Sequence[FrozenTrial], direction: StudyDirection) -> Losses:
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    return {t.number: {step: sign * value for step, value in t.intermediate_values.items()} for t in trials}


def score(curve: dict[int, float], step: int, gain: float) -> float:
    half = curve.get(step // EVERY // 2 * EVERY, curve[step])
    return curve[step] - gain * max(0.0, half - curve[step])


def threshold(curves: Losses, guard: float = 0.01) -> float:
    first = [curve[RUNGS[0]] for curve in curves.values() if RUNGS[0] in curve]
    median = statistics.median(first) if first else -math.inf
    return median - guard * abs(median)


def promote(
    trials: Sequence[FrozenTrial], parked: Set[int], *, direction: StudyDirection, may_start: bool
) -> int | None:
    """What `HalvingPruner.promote` answers with its default options."""
    if may_start and is_owed_to_new(trials, parked):
        return None
    curves = losses(trials, direction)
    factor, least, gain = (3.0, 1, 0.5) if may_start else (2.2, 3, 1.0)
    best = []
    for rung in RUNGS[:-1]:
        ranked = sorted((score(curve, rung, gain), number) for number, curve in curves.items() if rung in curve)
        places = ranked[: max(least, math.ceil(len(ranked) / factor))]
        waiting = [(*each, rung) for each in places if each[1] in parked and max(curves[each[1]]) == rung]
        best += waiting[:1]
    past = [each for each in best if curves[each[1]][each[2]] < threshold(curves)]
    chosen = min(past if past or may_start else best, default=None)
    return None if chosen is None else chosen[1]


def is_owed_to_new(trials: Sequence[FrozenTrial], parked: Set[int]) -> bool:
    spent = []
    for trial in trials:
        reached = trial.last_step or 0
        is_running = not trial.state.is_finished() and trial.number not in parked
        spent.append(
            next(rung for rung in (*RUNGS, reached) if rung > reached or rung == STEPS) if is_running else reached
        )
    return sum(min(steps, RUNGS[0]) for steps in spent) <= 0.5 * sum(spent)


def is_pruned(trial: FrozenTrial, trials: Sequence[FrozenTrial], direction: StudyDirection) -> bool:
    """What `PeerPruner.judge` answers at a rung with its default options."""
    step = trial.last_step
    assert step in RUNGS[:-1]
    curves = {number: curve for number, curve in losses(trials, direction).items() if step in curve}
    if len(curves) < 4:
        return False
    scores = sorted((score(curve, step, 0.5), number) for number, curve in curves.items())
    rank = [number for _, number in scores].index(trial.number)
    limit = threshold(losses(trials, direction))
    past = {number for number, curve in curves.items() if curve[step] < limit}
    if not past:
        return step != RUNGS[0] and rank > 0
    return rank >= math.ceil(len(scores) / 3) or (trial.number not in past and rank > 0)


def has_stalled(trials: Sequence[FrozenTrial], parked: Set[int], direction: StudyDirection, patience: int) -> bool:
    """What `Stall.has_come` answers for one objective."""
    curves = losses(trials, direction)
    ended = {trial.number for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)}
    counted = ended | {number for number in parked if curves[number]}
    sound = {t.number for t in trials if t.state is not TrialState.FAIL}
    sound -= {t.number for t in trials if t.user_attrs.get(STOP_REASON) in CONSTRAINT_OF}
    better = [
        number
        for number in counted & sound
        if curves[number]
        and all(
            curves[other].get(max(curves[number]), math.inf) > curves[number][max(curves[number])]
            for other in sound
            if other < number
        )
    ]
    return bool(better) and sum(number > max(better) for number in counted) >= patience
