"""Paired comparison over seeds: t-intervals, their power, and what may be said of them.

Values are differences of one metric between two arms that were trained with the same seed and the same data order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from automl.metric import Direction, as_loss

Verdict = Literal["better", "no clear difference", "worse"]

LEVEL = 0.96
"""Confidence with which all comparisons of one question hold together: at least 95 % of what is said.

A t-interval of scores that come in steps of a row covers a little less than its level; the hundredth pays for that.
"""

POWER = 0.8
"""Chance with which a difference of the size called detectable would have been seen."""

PROPOSED_SEEDS = (*range(3, 11), *range(12, 21, 2), *range(24, 33, 4), 40, 48, 56, 64, 80, 100, 130, 160, 200, 250)
"""Numbers of seeds that are proposed where more would decide."""

_PRECISION = 1e-6
"""Nearest to certainty that a probability is told."""

_INTERVALS = 600
"""Steps of Simpson's rule in `power`, which is right to 1e-8 from 3 differences on."""


class Estimate(NamedTuple):
    """Mean of paired differences with its confidence interval. detectable: smallest true difference that the interval
    would have excluded zero for with a chance of POWER.
    """

    mean: float
    low: float
    high: float
    detectable: float

    def turned(self, direction: Direction) -> Estimate:
        """Estimate of the gain: positive is better, whatever the direction."""
        if as_loss(1.0, direction) < 0.0:
            return self
        return Estimate(-self.mean, -self.high, -self.low, self.detectable)


def paired(differences: Sequence[float], level: float = LEVEL, *, grain: float = 0.0) -> Estimate:
    """Mean of the differences with a two-sided t-interval. Raises ValueError for fewer than two.

    grain: step in which the differences come (a row of the test set; 0 = none). Their standard deviation counts as at
    least that, so that a few seeds that happen to agree to the row are no certainty.
    """
    number = len(differences)
    if number < 2:
        raise ValueError(f"{number} differences; an interval needs two")
    mean = math.fsum(differences) / number
    error = max(spread(differences), grain) / math.sqrt(number)
    half = t_quantile((1.0 + level) / 2.0, number - 1) * error
    return Estimate(mean, mean - half, mean + half, detectable_shift(number, level) * error)


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


def is_not_worse(gain: Estimate, margin: float) -> bool:
    """Whether the interval of a gain rules out a loss of `margin` or more."""
    return gain.low > -margin


def chance_above(gap: float, errors: Sequence[tuple[float, int]]) -> float:
    """Probability that a true mean lies above a bound that the measured one exceeds by `gap`, given a flat prior.

    errors: standard errors of the mean with their degrees of freedom, of seeds and perhaps of rows. Of one, the mean is
    the measured one plus its error times Student's t. Source: Gelman et al. 2013, Bayesian Data Analysis, section 3.2.
    Several are combined as in an interval over seeds and rows, so an interval of level q that ends at the bound means
    a probability of (1 + q) / 2 either way: whatever is proven has at least that, whatever is not has less.
    """
    known = [(error, freedom) for error, freedom in errors if error]
    if not known:
        return 0.5 if gap == 0.0 else float(gap > 0.0)
    if len(known) == 1:
        return t_distribution(gap / known[0][0], known[0][1])

    def excess(probability: float) -> float:
        return math.hypot(*(t_quantile(probability, freedom) * error for error, freedom in known)) - abs(gap)

    beyond = _bisect(excess, 0.5, 1.0 - _PRECISION, precision=_PRECISION)
    return beyond if gap >= 0.0 else 1.0 - beyond


def seeds_to_decide(gain: Estimate, sd: float, margin: float, level: float, by_rows: float = 0.0) -> int | None:
    """Least of PROPOSED_SEEDS with which it would be known, with a chance of POWER, if a loss of `margin` is ruled out.

    That is, if the gain is truly as measured: it is then shown to be above -margin, or to be below 0, whichever takes
    fewer seeds. sd: of the differences. by_rows: what these rows leave open, however many seeds. None if it takes more
    than the most of them.
    """
    reached = max(gain.mean + margin, -gain.mean)

    def is_enough(number: int) -> bool:
        return math.hypot(detectable_shift(number, level) * sd / math.sqrt(number), by_rows) <= reached

    return next(filter(is_enough, PROPOSED_SEEDS), None)


@cache
def detectable_shift(number: int, level: float) -> float:
    """True mean, in standard errors, that the interval of so many differences excludes 0 for with a chance of POWER."""
    freedom = number - 1
    reach = t_quantile((1.0 + level) / 2.0, freedom)
    return _bisect(lambda shift: power(shift, reach, freedom) - POWER, 0.0, 2.0 * reach + 2.0, precision=1e-7)


def power(shift: float, reach: float, freedom: int) -> float:
    """P(T > reach) for the non-central t with non-centrality `shift`: E[Phi(shift - reach S)], S^2 ~ chi^2 / freedom.

    Source: Johnson, Kotz and Balakrishnan 1995, Continuous Univariate Distributions 2, chapter 31; integrated over S.
    """
    half = freedom / 2.0
    low, high = max(1e-12, 1.0 - 7.0 / math.sqrt(freedom)), 1.0 + 7.0 / math.sqrt(freedom)
    width = (high - low) / _INTERVALS
    scale = math.log(2.0) + half * math.log(half) - math.lgamma(half)
    total = 0.0
    for index in range(_INTERVALS + 1):
        s = low + index * width
        weight = 1.0 if index in (0, _INTERVALS) else 4.0 if index % 2 else 2.0
        density = math.exp(scale + (freedom - 1) * math.log(s) - half * s * s)
        total += weight * density * math.erfc((reach * s - shift) / math.sqrt(2.0)) / 2.0
    return total * width / 3.0


@cache
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


def _bisect(function: Callable[[float], float], low: float, high: float, *, precision: float = 0.0) -> float:
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high) or high - low < precision:
            return middle
        if function(middle) < 0.0:
            low = middle
        else:
            high = middle
