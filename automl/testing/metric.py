"""The contract of a metric that scores rows."""

from __future__ import annotations

import math
import random
from typing import Any, ClassVar

import pytest

from automl.metric import METRICS, Metric

WORDS = ("one", "two", "three four", "five.", "")


class MetricContract:
    """metric: its name."""

    metric: ClassVar[str]

    @pytest.fixture
    def name(self) -> str:
        """The metric that is tested."""
        return self.metric

    @pytest.fixture
    def facts(self, name: str) -> Metric:
        """Its entry."""
        return METRICS[name]

    def test_its_range_is_not_empty(self, facts: Metric) -> None:
        assert facts.low < facts.high

    @pytest.fixture
    def right(self, facts: Metric) -> list[Any]:
        """What cannot be answered better than by itself: class ids, or texts."""
        return _rows(facts, 40, seed=0)[0]

    def test_right_answers_are_the_best_there_is(self, facts: Metric, right: list[Any]) -> None:
        best = min(facts.low, facts.high, key=facts.loss)
        assert _score(facts, right, right) == pytest.approx(best) or not math.isfinite(best)

    def test_it_is_a_finite_number_of_its_range(self, facts: Metric) -> None:
        for seed, count in enumerate((1, 2, 7, 100)):
            value = _score(facts, *_rows(facts, count, seed=seed))
            assert math.isfinite(value)
            assert facts.low <= value <= facts.high

    def test_the_order_of_the_rows_does_not_matter(self, facts: Metric) -> None:
        truth, predicted = _rows(facts, 50, seed=3)
        order = random.Random(4).sample(range(50), 50)
        again = _score(facts, [truth[place] for place in order], [predicted[place] for place in order])
        assert again == pytest.approx(_score(facts, truth, predicted), rel=1e-12)


def _score(facts: Metric, truth: list[Any], predicted: list[Any]) -> float:
    assert facts.score is not None, "the task computes it itself: there is nothing to test here"
    return float(facts.score(truth, predicted))


def _rows(facts: Metric, count: int, *, seed: int) -> tuple[list[Any], list[Any]]:
    """Right answers and predictions, half of them right: class ids, or texts."""
    draw = random.Random(seed)
    values: list[Any] = list(WORDS) if facts.generates else list(range(4))
    truth = [draw.choice(values) for _ in range(count)]
    return truth, [value if draw.random() < 0.5 else draw.choice(values) for value in truth]
