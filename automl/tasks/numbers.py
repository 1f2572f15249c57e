"""Metrics of numbers that are predicted, over Python sequences; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from automl.head import Scale
from automl.metric import Metric
from automl.tasks.metrics import check_pairs, mean

_NUMBERS = ("regression",)


def mse(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean squared error. Raises ValueError for no rows or unequal lengths, as all functions here do."""
    check_pairs(truth, predicted)
    return mean([(a - b) ** 2 for a, b in zip(truth, predicted, strict=True)])


def rmse(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Root of the mean squared error, in the unit of the labels."""
    return math.sqrt(mse(truth, predicted))


def mae(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean absolute error, in the unit of the labels."""
    check_pairs(truth, predicted)
    return mean([abs(a - b) for a, b in zip(truth, predicted, strict=True)])


def r2(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Coefficient of determination, at most 1; 0 if all labels are alike, where it is not defined."""
    spread = _moment(truth, truth)
    return 1.0 - mse(truth, predicted) * len(truth) / spread if spread else 0.0


def pearson(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's correlation, in [-1, 1]; 0 if either side is constant, where it is not defined."""
    check_pairs(truth, predicted)
    spread = math.sqrt(_moment(truth, truth)) * math.sqrt(_moment(predicted, predicted))
    return max(-1.0, min(1.0, _moment(truth, predicted) / spread)) if spread else 0.0


def spearman(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Spearman's correlation, that of Pearson between ranks; equal values have the mean of their ranks."""
    check_pairs(truth, predicted)
    return pearson(_ranks(truth), _ranks(predicted))


def quadratic_kappa(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Agreement of grades beyond chance, errors weighted by their square, in [-1, 1]; 0 if all grades are alike.

    Source: Cohen 1968, "Weighted kappa", with weights (i - j)^2.
    """
    check_pairs(truth, predicted)
    by_chance = _moment(truth, truth) + _moment(predicted, predicted)
    by_chance += len(truth) * (mean(truth) - mean(predicted)) ** 2
    return 1.0 - mse(truth, predicted) * len(truth) / by_chance if by_chance else 0.0


MSE = Metric("minimize", 0.0, math.inf, _NUMBERS, score=mse)
RMSE = Metric("minimize", 0.0, math.inf, _NUMBERS, score=rmse)
MAE = Metric("minimize", 0.0, math.inf, _NUMBERS, score=mae)
R2 = Metric("maximize", -math.inf, 1.0, _NUMBERS, score=r2)
PEARSON = Metric("maximize", -1.0, 1.0, _NUMBERS, score=pearson)
SPEARMAN = Metric("maximize", -1.0, 1.0, _NUMBERS, score=spearman)
QUADRATIC_KAPPA = Metric("maximize", -1.0, 1.0, _NUMBERS, score=quadratic_kappa)


def as_grades(predicted: Sequence[float], scale: Scale) -> list[float]:
    """Predictions rounded to the nearest grade there is in training, halves up."""
    assert scale.levels is not None
    low, high = scale.levels
    return [float(min(max(math.floor(value + 0.5), low), high)) for value in predicted]


def _moment(first: Sequence[float], second: Sequence[float]) -> float:
    """Sum of the products of the deviations from the means."""
    a, b = mean(first), mean(second)
    return math.fsum((x - a) * (y - b) for x, y in zip(first, second, strict=True))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for place in order[start:stop]:
            ranks[place] = (start + stop - 1) / 2
        start = stop
    return ranks
