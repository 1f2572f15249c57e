"""Metrics as plain functions over Python sequences; nothing here needs torch. Directions are in `automl.metric`.

Counts are whole numbers until the last division, so an accuracy of 11 in 50 is 0.22 and not 0.2199999.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def accuracy(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Share of equal pairs, in [0, 1]. Raises ValueError for no rows or unequal lengths, as all functions here do."""
    _check(truth, predicted)
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)


def macro_f1(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Unweighted mean of the F1 of every class that occurs in truth or predictions, in [0, 1]; as in scikit-learn."""
    _check(truth, predicted)
    hits = Counter(a for a, b in zip(truth, predicted, strict=True) if a == b)
    sizes = Counter(truth) + Counter(predicted)  # 2 tp + fn + fp
    return math.fsum(2 * hits[name] / size for name, size in sizes.items()) / len(sizes)


def mcc(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Matthews correlation over any number of classes, in [-1, 1]; 0 if either side has one class only.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    _check(truth, predicted)
    rows = len(truth)
    hits = sum(a == b for a, b in zip(truth, predicted, strict=True))
    true, guessed = Counter(truth), Counter(predicted)
    shared = sum(true[name] * guessed[name] for name in true)
    spread_true = rows * rows - sum(count * count for count in true.values())
    spread_guessed = rows * rows - sum(count * count for count in guessed.values())
    if not spread_true or not spread_guessed:
        return 0.0
    return (hits * rows - shared) / math.sqrt(spread_true * spread_guessed)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, summed without rounding on the way, so it does not depend on the order."""
    if not values:
        raise ValueError("a metric needs at least one row")
    return math.fsum(values) / len(values)


def entropy(truth: Sequence[int]) -> float:
    """Loss in nats of always predicting the class frequencies of `truth` itself: what no model without input beats."""
    if not truth:
        raise ValueError("a metric needs at least one row")
    rows = len(truth)
    return math.fsum(count / rows * math.log(rows / count) for count in Counter(truth).values())


def perplexity(loss: float) -> float:
    """exp of a loss in nats per token; infinite where it exceeds a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions equal to their reference, runs of white space counting as one space; in [0, 1]."""
    _check(references, predictions)
    pairs = zip(references, predictions, strict=True)
    return sum(a.split() == b.split() for a, b in pairs) / len(references)


def rouge_l(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure over the pairs, in [0, 1]: lower-cased words, no stemming, precision and recall alike.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1, with beta = 1.
    """
    _check(references, predictions)
    pairs = zip(references, predictions, strict=True)
    return math.fsum(_rouge_l(_words(a), _words(b)) for a, b in pairs) / len(references)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; time len(first) * len(second), memory len(second)."""
    best = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = best[column]
            best[column] = diagonal + 1 if word == other else max(above, best[column - 1])
            diagonal = above
    return best[-1]


def _rouge_l(reference: Sequence[str], prediction: Sequence[str]) -> float:
    if not reference or not prediction:
        return float(list(reference) == list(prediction))
    return 2 * common_subsequence(reference, prediction) / (len(reference) + len(prediction))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _check(truth: Sequence[object], predicted: Sequence[object]) -> None:
    if not truth or len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} references and {len(predicted)} predictions; equal numbers above 0 are needed")
