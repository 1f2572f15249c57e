"""Trials of several studies with the same workers: each study is a lane, and a trial's number says in which it is.

Studies number their own trials from 0. On the way to a worker and back a trial has a number that no trial of another
lane has; in the first lane, the only one there is as a rule, that is its own number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LANE = 10_000_000
"""Numbers of a lane; more than a study can have trials."""


def number_in(lane: int, own: int) -> int:
    """Number with the workers of a trial that has this number in its study."""
    return lane * LANE + own


def lane_of(number: int) -> int:
    """Which study a trial is of, from 0."""
    return number // LANE


def own_number(number: int) -> int:
    """Number of a trial in its study."""
    return number % LANE


def trial_name(number: int) -> str:
    """A trial as a message names it: `trial 3`, or `trial 3 of task 2`."""
    lane = lane_of(number)
    return f"trial {own_number(number)}" + (f" of task {lane + 1}" if lane else "")


def joined(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of every lane in one mapping; of a single one as they are."""
    if len(metrics) == 1:
        return dict(metrics[0])
    return {f"{lane}:{name}": value for lane, own in enumerate(metrics) for name, value in own.items()}


def parted(metrics: Mapping[str, float], lanes: int) -> list[dict[str, float]]:
    """The inverse of `joined`."""
    if lanes == 1:
        return [dict(metrics)]
    found: list[dict[str, float]] = [{} for _ in range(lanes)]
    for key, value in metrics.items():
        lane, _, name = key.partition(":")
        found[int(lane)][name] = value
    return found
