"""Paired comparison over seeds: t-intervals, what they could have detected, and what may be said of them.

Values are differences of one metric between two arms that were trained with the same seed and the same data order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from automl.metric import Direction, as_loss

Verdict = Literal["better", "no clear difference", "worse"]

LEVEL = 0.96
"""Confidence with which all comparisons of one question hold together: at least 95 % of what is said.

A t-interval of scores that come in steps of a row covers up to 0.6 points less than its level (8 seeds that differ by
about 1.4 rows, 200,000 draws); the hundredth pays for that.
"""

POWER = 0.8
"""Chance with which a difference of the size called detectable would have been seen."""


class Estimate(NamedTuple):
    """Mean of paired differences with its confidence interval. detectable: smallest true difference that the interval
    would have excluded zero for with a chance of POWER.
    """

    mean: float
    low: float
    high: float
    detectable: float


def paired(differences: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean of the differences with a two-sided t-interval. Raises ValueError for fewer than two.

    detectable: (t at the level + t at POWER) * sd / sqrt(n). Source: any text on the paired t-test; the second term
    takes the place of the non-central t, and is within 3 % of it from 4 differences on.
    """
    number = len(differences)
    if number < 2:
        raise ValueError(f"{number} differences; an interval needs two")
    mean = math.fsum(differences) / number
    error = spread(differences) / math.sqrt(number)
    reach = t_quantile((1.0 + level) / 2.0, number - 1)
    half = reach * error
    return Estimate(mean, mean - half, mean + half, half + t_quantile(POWER, number - 1) * error)


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample, with n - 1; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def joint_level(comparisons: int) -> float:
    """Level of each of several comparisons so that all hold together with LEVEL (Bonferroni).

    Holm's procedure would be a little sharper, but its intervals would not always agree with its verdicts.
    """
    return 1.0 - (1.0 - LEVEL) / max(1, comparisons)


def in_percent(level: float) -> str:
    """A confidence level for people: `98 %`, `98.7 %`."""
    return f"{100 * level:.3g} %"


def verdict(estimate: Estimate, direction: Direction) -> Verdict:
    """What the interval says: `better` or `worse` only if it excludes zero."""
    if estimate.low <= 0.0 <= estimate.high:
        return "no clear difference"
    return "better" if as_loss(estimate.mean, direction) < 0.0 else "worse"


def is_settled(estimate: Estimate, margin: float) -> bool:
    """Whether an early look may end the comparison: the interval holds zero and nothing beyond ±margin.

    Only "no clear difference" can come of it, so looking early raises no false alarm.
    """
    return -margin <= estimate.low <= 0.0 <= estimate.high <= margin


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t with a whole number of degrees of freedom, to about 1e-12, by bisection."""
    if not 0.0 < probability < 1.0 or freedom < 1:
        raise ValueError(f"no t quantile at {probability} with {freedom} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1.0 - probability, freedom)
    high = 1.0
    while t_distribution(high, freedom) < probability:
        high *= 2.0
    return _bisect(lambda t: t_distribution(t, freedom) - probability, 0.0, high)


def t_distribution(t: float, freedom: int) -> float:
    """P(T <= t) for Student's t with a whole number of degrees of freedom: a finite sum.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    is_odd = freedom % 2 == 1
    term, total = (math.cos(angle), 0.0) if is_odd else (1.0, 0.0)
    for step in range(freedom // 2):
        total += term
        term *= square * ((2 * step + 2) / (2 * step + 3) if is_odd else (2 * step + 1) / (2 * step + 2))
    within = 2.0 / math.pi * (angle + sine * total) if is_odd else sine * total
    return 0.5 + within / 2.0


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high):
            return middle
        if function(middle) < 0.0:
            low = middle
        else:
            high = middle
