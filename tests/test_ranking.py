"""The rule of rank: value, second objective, number; and its two forms, in Python and in SQL, which agree."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import permutations

import pytest

from automl import ranking
from automl.metric import METRICS, Direction, as_loss
from automl.trial import TrialState

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


@dataclass(frozen=True)
class Trial:
    number: int
    state: TrialState
    value: float | None
    size: float | None = None


TRIALS = (
    Trial(0, COMPLETE, 0.7),
    Trial(1, PRUNED, 0.99),
    Trial(2, COMPLETE, 0.9),
    Trial(3, COMPLETE, 0.9),
    Trial(4, FAIL, None),
    Trial(5, RUNNING, None),
    Trial(6, PRUNED, 0.1),
)


@pytest.mark.parametrize(
    ("direction", "order"), [("maximize", [2, 3, 0, 1, 6, 4, 5]), ("minimize", [0, 2, 3, 6, 1, 4, 5])]
)
def test_complete_trials_come_first_and_of_equals_the_earlier_one(direction: Direction, order: list[int]) -> None:
    for some in permutations(TRIALS, 5):
        wanted = [number for number in order if number in {trial.number for trial in some}]
        assert [trial.number for trial in ranking.ranked(some, direction)] == wanted
    assert [trial.number for trial in ranking.complete(TRIALS, direction)] == order[:3]
    assert ranking.best(TRIALS, direction) == TRIALS[order[0]]


def test_of_equals_the_one_with_less_of_the_second_objective_is_the_best() -> None:
    trials = [Trial(0, COMPLETE, 0.9, 30.0), Trial(1, COMPLETE, 0.9, 10.0), Trial(2, COMPLETE, 0.9, 10.0)]
    trials += [Trial(3, COMPLETE, 0.8, 5.0), Trial(4, COMPLETE, 0.7, 5.0), Trial(5, PRUNED, 0.95, None)]
    assert ranking.best(trials, "maximize") == trials[1]
    assert [trial.number for trial in ranking.front(trials, "maximize")] == [3, 1]
    assert ranking.front(TRIALS, "maximize") == [], "with one objective there is none"


def test_without_a_complete_trial_there_is_no_best() -> None:
    assert ranking.best([Trial(0, PRUNED, 0.9), Trial(1, COMPLETE, None)], "maximize") is None


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_gain_is_positive_where_the_value_is_better(metric: str) -> None:
    rule = METRICS[metric]
    draw = random.Random(metric)
    for _ in range(20):
        one, other = draw.random(), draw.random()
        is_better = one < other if metric in ("loss", "perplexity", "kl", "mse", "rmse", "mae") else one > other
        assert (rule.gain(one, over=other) > 0) == is_better == (rule.loss(one) < rule.loss(other))
        assert as_loss(rule.loss(one), rule.direction) == one
