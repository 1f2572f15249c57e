"""The one rule of rank: which of two trials is better, whoever asks, and which no other beats in both objectives.

Trials are compared by the metric; of equals the smaller second objective wins (`search.also_minimize`), of these the
lower number. Trainable parameters decide nothing in a search of one objective: the adapters a study keeps were chosen
while it ran, so a rule that looks at what Optuna does not rank by could name a best trial whose adapter is gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

from automl.metric import Direction, as_loss
from automl.trial import TrialState


class Point(NamedTuple):
    """A trial as it is ranked: sorted, the best comes first. loss: the metric, smaller is better. size: the second
    objective, 0 where there is none."""

    loss: float
    size: float
    trial: int


class Trial(Protocol):
    """What is ranked. value: the objective, None without one; size: the second objective, None without one."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> TrialState: ...
    @property
    def value(self) -> float | None: ...
    @property
    def size(self) -> float | None: ...


T = TypeVar("T", bound=Trial)


def ranked(trials: Iterable[T], direction: Direction) -> list[T]:
    """Best first: complete trials, then others that have a value, then those without one by number."""

    def place(trial: T) -> tuple[bool, bool, Point]:
        return trial.value is None, trial.state != TrialState.COMPLETE, _point(trial, direction)

    return sorted(trials, key=place)


def complete(trials: Iterable[T], direction: Direction) -> list[T]:
    """The COMPLETE trials that have a value, best first."""
    return ranked((trial for trial in trials if is_complete(trial)), direction)


def best(trials: Iterable[T], direction: Direction) -> T | None:
    """The best COMPLETE trial, None if there is none."""
    return min(
        (trial for trial in trials if is_complete(trial)), key=lambda trial: _point(trial, direction), default=None
    )


def front(trials: Iterable[T], direction: Direction) -> list[T]:
    """Complete trials that no other one beats in both objectives, smallest first; empty where there is only one."""
    both = {trial.number: trial for trial in trials if is_complete(trial) and trial.size is not None}
    return [both[point.trial] for point in pareto_front(_point(trial, direction) for trial in both.values())]


def is_no_better(trial: Trial | None, value: float | None, direction: Direction) -> bool:
    """Whether the trial has not got beyond this value; False where there is no trial or no value."""
    if trial is None or trial.value is None or value is None:
        return False
    return as_loss(trial.value, direction) >= as_loss(value, direction)


def is_complete(trial: Trial) -> bool:
    """Whether the trial was trained to its end, and so may be the best."""
    return trial.state == TrialState.COMPLETE and trial.value is not None


def point(number: int, values: Iterable[float], direction: Direction) -> Point:
    """The trial by its objectives, the metric first, as Optuna has them."""
    value, *rest = values
    return Point(as_loss(value, direction), sum(rest), number)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other one matches in both objectives and beats in one, smallest first; the earliest of equals."""
    found = Front()
    for each in points:
        found.add(each)
    return found.points


class Front:
    """The Pareto front of the points so far, kept up to date; which one is added first makes no difference."""

    def __init__(self) -> None:
        self.points: list[Point] = []  # smallest first, so that the loss falls

    @property
    def trials(self) -> list[int]:
        """Trials on the front, smallest first."""
        return [each.trial for each in self.points]

    def add(self, point: Point) -> None:
        """Take a point in, and drop what it matches in both objectives; the same point again changes nothing."""
        place = bisect_left(self.points, _by_size(point), key=_by_size)
        if place and self.points[place - 1].loss <= point.loss:
            return
        end = place
        while end < len(self.points) and self.points[end].loss >= point.loss:
            end += 1
        self.points[place:end] = [point]


def _point(trial: Trial, direction: Direction) -> Point:
    return Point(as_loss(trial.value or 0.0, direction), trial.size or 0.0, trial.number)


def _by_size(point: Point) -> tuple[float, float, int]:
    return point.size, point.loss, point.trial
