"""Two objectives at once: which trials no other beats in the metric and in what is to be kept small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class Point(NamedTuple):
    """A COMPLETE trial, smaller is better. loss: the metric, negated if it is maximised. size: the second objective, 0
    where there is none. Sorted, the best by the metric comes first; of equals the smallest, then the earliest."""

    loss: float
    size: float
    trial: int


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other one matches in both objectives and beats in one, smallest first; the earliest of equals."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size, point.loss, point.trial)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def has_front_stalled(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], patience: int) -> bool:
    """Whether the last `patience` COMPLETE trials are all beaten by earlier ones, so that the front has not moved."""
    sign = -1.0 if directions[0] is StudyDirection.MAXIMIZE else 1.0
    points = [
        Point(sign * trial.values[0], trial.values[1], trial.number)
        for trial in trials
        if trial.state is TrialState.COMPLETE
    ]
    leader = max((point.trial for point in pareto_front(points)), default=len(trials))
    return sum(point.trial > leader for point in points) >= patience
