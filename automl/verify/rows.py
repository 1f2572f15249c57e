"""Test rows are a sample too: how far a difference between two arms could move with other rows.

The difference is a mean over seeds and rows, which are crossed: every seed is scored on every row. Its variance is that
over seeds, with these rows, plus that over rows, of the means over these seeds. What is left over in both is counted
twice, so the sum is rather too large. Source: Owen 2007, The pigeonhole bootstrap, section 3, whose bootstrap over
seeds and rows estimates the same sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from automl.metric import METRICS
from automl.outcomes import Outcomes, decoded
from automl.verify.statistics import Estimate, detectable_shift, spread, t_quantile

GROUPS = 50
"""Parts of the rows that are left out in turn where the metric is no mean of rows."""

_MOST_FREEDOM = 200
"""From so many degrees of freedom on, the quantile of the normal distribution is as good."""

Pair = tuple[Outcomes, Outcomes]
"""Outcomes of two arms for one seed, the rows in the same order."""


@lru_cache(maxsize=512)
def outcomes_of(text: str) -> Outcomes:
    """`automl.outcomes.decoded`, remembered: every comparison of an arm reads them again."""
    return decoded(text)


def row_error(pairs: Sequence[Pair], metric: str, truth: Sequence[int]) -> float:
    """Standard error, over rows, of the mean over seeds of the differences between two arms.

    pairs: one for each seed, all of one kind and length. truth: classes of the rows, in their order.
    """
    if pairs[0][0].kind == "values":
        return _error_of_mean([_differences(ours.rows, theirs.rows) for ours, theirs in pairs])
    score = METRICS[metric].score
    assert score is not None
    return _jackknife(pairs, score, truth)


def widened(estimate: Estimate, error: float, rows: int, level: float) -> Estimate:
    """The estimate over seeds with an interval over seeds and rows. error: over rows, of which there are so many."""
    half = math.hypot(estimate.high - estimate.mean, t_quantile((1.0 + level) / 2.0, _freedom(rows)) * error)
    detectable = math.hypot(estimate.detectable, detectable_by(rows, error, level))
    return Estimate(estimate.mean, estimate.mean - half, estimate.mean + half, detectable)


def detectable_by(rows: int, error: float, level: float) -> float:
    """Least true difference that an interval over these rows alone would see, as `Estimate.detectable`."""
    return detectable_shift(_freedom(rows) + 1, level) * error


def groups_of(rows: int, kind: str) -> int:
    """Independent parts that the error over rows rests on."""
    return rows if kind == "values" else min(GROUPS, rows)


def _freedom(rows: int) -> int:
    return max(1, min(rows - 1, _MOST_FREEDOM))


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _error_of_mean(by_seed: Sequence[Sequence[float]]) -> float:
    means = [math.fsum(row) / len(by_seed) for row in zip(*by_seed, strict=True)]
    return spread(means) / math.sqrt(len(means))


def _jackknife(
    pairs: Sequence[Pair], score: Callable[[Sequence[int], Sequence[int]], float], truth: Sequence[int]
) -> float:
    """Delete-a-group jackknife. Source: Kott 2001, The delete-a-group jackknife, equation 1."""
    groups = min(GROUPS, len(truth))

    def without(group: int) -> float:
        kept = [place for place in range(len(truth)) if place % groups != group]
        right = [truth[place] for place in kept]
        return math.fsum(_pair_scores(pairs, score, right, kept)) / len(pairs)

    left_out = [without(group) for group in range(groups)]
    return spread(left_out) * (groups - 1) / math.sqrt(groups)


def _pair_scores(
    pairs: Sequence[Pair],
    score: Callable[[Sequence[int], Sequence[int]], float],
    right: Sequence[int],
    kept: Sequence[int],
) -> Iterator[float]:
    for ours, theirs in pairs:
        yield score(right, [int(ours.rows[place]) for place in kept]) - score(
            right, [int(theirs.rows[place]) for place in kept]
        )
