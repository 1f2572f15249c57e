"""Test rows are a sample too: how far a difference between two arms could move with other rows.

The difference is a mean over seeds and rows, which are crossed: every seed is scored on every row. Its variance is that
over seeds, with these rows, plus what rows add: the variance over rows of the means over seeds, less the part of it
that is the seeds' own. Source: Searle, Casella and McCulloch 1992, Variance Components, section 4.5 (two-way crossed,
no interaction). A paired bootstrap over seeds and rows would count that part three times (Owen 2007, The pigeonhole
bootstrap, theorem 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from automl.metric import METRICS
from automl.outcomes import Outcomes, decoded
from automl.verify.statistics import Estimate, detectable_shift, paired, spread, t_quantile

GROUPS = 50
"""Parts of the rows that are left out in turn where the metric is no mean of rows."""

_MOST_FREEDOM = 200
"""From so many degrees of freedom on, the quantile of the normal distribution is as good."""

Pair = tuple[Outcomes, Outcomes]
"""Outcomes of two arms for one seed, the rows in the same order."""


class OfRows(NamedTuple):
    """What rows add to the standard error of a difference, and how many independent parts of them that rests on."""

    error: float
    parts: int


@lru_cache(maxsize=256)
def of_rows(told: tuple[tuple[str, str], ...], metric: str, truth: tuple[float, ...]) -> OfRows:
    """Judge outcomes as they are stored, a pair of arms for each seed; remembered, since it is asked for often."""
    pairs = [(decoded(ours), decoded(theirs)) for ours, theirs in told]
    kind, rows = pairs[0][0].kind, len(pairs[0][0].rows)
    return OfRows(row_error(pairs, metric, truth), rows if kind == "values" else min(GROUPS, rows))


def row_error(pairs: Sequence[Pair], metric: str, truth: Sequence[float]) -> float:
    """What rows add to the standard error of the mean over seeds of the differences between two arms.

    pairs: one for each seed, at least two, all of one kind and length. truth: classes or numbers of
    the rows, in their order.
    """
    if pairs[0][0].kind == "values":
        return _added([_differences(ours.rows, theirs.rows) for ours, theirs in pairs])
    score = METRICS[metric].score
    assert score is not None
    return _added([_pseudo_values(pair, score, truth) for pair in pairs])


def truth_of(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Classes or numbers of tokenised rows in the order of outcomes, the longest first."""
    return [row["labels"] for row in sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)]


def between(ours: Outcomes, theirs: Outcomes, metric: str, truth: Sequence[float]) -> Estimate:
    """The difference between two trained models, and how far it could move with other rows; seeds are left out of it.

    Arguments as for `row_error`, of one pair, at least two rows.
    """
    if ours.kind == "values":
        return paired(_differences(ours.rows, theirs.rows))
    score = METRICS[metric].score
    assert score is not None
    estimate = paired(_pseudo_values((ours, theirs), score, truth))
    mean = _difference((ours, theirs), score, truth, range(len(truth)))
    return estimate._replace(
        mean=mean, low=estimate.low - estimate.mean + mean, high=estimate.high - estimate.mean + mean
    )


def widened(estimate: Estimate, error: float, rows: int, level: float) -> Estimate:
    """The estimate over seeds with an interval over seeds and rows. error: over rows, of which there are so many."""
    half = math.hypot(estimate.high - estimate.mean, t_quantile((1.0 + level) / 2.0, freedom_of(rows)) * error)
    detectable = math.hypot(estimate.detectable, detectable_by(rows, error, level))
    return Estimate(estimate.mean, estimate.mean - half, estimate.mean + half, detectable)


def freedom_of(rows: int) -> int:
    """Degrees of freedom of a standard error over so many rows."""
    return max(1, min(rows - 1, _MOST_FREEDOM))


def detectable_by(rows: int, error: float, level: float) -> float:
    """Least true difference that an interval over these rows alone would see, as `Estimate.detectable`."""
    return detectable_shift(freedom_of(rows) + 1, level) * error


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _added(by_seed: Sequence[Sequence[float]]) -> float:
    """Standard error that columns add to the mean of a table of seeds and rows; 0 if no more than is the seeds' own."""
    seeds, columns = len(by_seed), len(by_seed[0])
    means = [math.fsum(column) / seeds for column in zip(*by_seed, strict=True)]
    of_means = math.fsum((mean - math.fsum(means) / columns) ** 2 for mean in means)
    within = math.fsum(spread(row) ** 2 * (columns - 1) for row in by_seed)
    residual = (within - seeds * of_means) / ((seeds - 1) * (columns - 1))
    return math.sqrt(max(0.0, of_means / (columns - 1) - residual / seeds) / columns)


def _pseudo_values(
    pair: Pair, score: Callable[[Sequence[Any], Sequence[Any]], float], truth: Sequence[float]
) -> list[float]:
    """What each part of the rows contributes to the difference of a seed, by leaving it out.

    Source: Kott 2001, The delete-a-group jackknife; Efron and Tibshirani 1993, An Introduction to the Bootstrap, 11.7.
    """
    groups = min(GROUPS, len(truth))
    everything = range(len(truth))
    whole = groups * _difference(pair, score, truth, everything)
    kept = ([place for place in everything if place % groups != group] for group in range(groups))
    return [whole - (groups - 1) * _difference(pair, score, truth, places) for places in kept]


def _difference(
    pair: Pair, score: Callable[[Sequence[Any], Sequence[Any]], float], truth: Sequence[float], kept: Sequence[int]
) -> float:
    """Difference of the metric over some of the rows."""
    right = [truth[place] for place in kept]
    ours, theirs = (score(right, [side.rows[place] for place in kept]) for side in pair)
    return ours - theirs
