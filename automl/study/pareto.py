"""Two objectives at once: which trials no other beats in the metric and in what is to be kept small."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple


class Point(NamedTuple):
    """A COMPLETE trial, smaller is better. loss: the metric, negated if it is maximised. size: the second objective, 0
    where there is none. Sorted, the best by the metric comes first; of equals the smallest, then the earliest."""

    loss: float
    size: float
    trial: int


class Front:
    """The Pareto front of the points so far, kept up to date; which one is added first makes no difference."""

    def __init__(self) -> None:
        self.points: list[Point] = []  # smallest first, so that the loss falls

    @property
    def trials(self) -> list[int]:
        """Trials on the front, smallest first."""
        return [point.trial for point in self.points]

    def add(self, point: Point) -> None:
        """Take a point in, and drop what it matches in both objectives; the same point again changes nothing."""
        place = bisect_left(self.points, _by_size(point), key=_by_size)
        if place and self.points[place - 1].loss <= point.loss:
            return
        end = place
        while end < len(self.points) and self.points[end].loss >= point.loss:
            end += 1
        self.points[place:end] = [point]


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other one matches in both objectives and beats in one, smallest first; the earliest of equals."""
    front = Front()
    for point in points:
        front.add(point)
    return front.points


def _by_size(point: Point) -> tuple[float, float, int]:
    return point.size, point.loss, point.trial
