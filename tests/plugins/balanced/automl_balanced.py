"""Mean over the classes of the share of their rows that are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from automl.metric import Metric


def balanced_accuracy(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """In [0, 1]; as scikit-learn's balanced_accuracy_score."""
    rows = Counter(truth)
    hits = Counter(label for label, guess in zip(truth, predicted, strict=True) if label == guess)
    return sum(hits[label] / count for label, count in rows.items()) / len(rows)


BALANCED_ACCURACY = Metric("maximize", 0.0, 1.0, ("classification",), score=balanced_accuracy)
