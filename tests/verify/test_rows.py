"""Rows as a sample: the error over rows against formulas and a bootstrap, and what is claimed with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from automl.outcomes import Outcomes, encoded
from automl.tasks.metrics import accuracy, macro_f1, mcc
from automl.verify.conclude import conclude
from automl.verify.plan import Plan, Training
from automl.verify.protocol import Scores, next_trainings
from automl.verify.recommendation import recommend
from automl.verify.rows import GROUPS, Pair, between, freedom_of, row_error, widened
from automl.verify.statistics import LEVEL, chance_above, paired, t_quantile
from tests.verify.verify_cases import arm, make_plan

SEEDS, ROWS, CLASSES = 3, 600, 3


def predictions(seed: int, right: float, truth: np.ndarray) -> list[int]:
    draw = np.random.default_rng(seed)
    wrong = (truth + draw.integers(1, CLASSES, truth.shape)) % CLASSES
    return [int(name) for name in np.where(draw.random(truth.shape) < right, truth, wrong)]


@pytest.fixture(scope="module")
def predicted() -> tuple[list[int], list[Pair]]:
    """Truth of unequal classes, and what two arms predict, the same in each of three seeds."""
    truth = np.random.default_rng(1).choice(CLASSES, ROWS, p=(0.7, 0.2, 0.1))
    pair = tuple(Outcomes("classes", predictions(seed, right, truth)) for seed, right in ((10, 0.9), (20, 0.8)))
    return truth.tolist(), [pair] * SEEDS  # type: ignore[list-item]  # a pair


@pytest.mark.parametrize(("metric", "score"), [("macro_f1", macro_f1), ("mcc", mcc)])
def test_a_metric_that_is_no_mean_has_the_error_of_a_bootstrap_over_rows(
    predicted: tuple[list[int], list[Pair]], metric: str, score: Callable[[list[int], list[int]], float]
) -> None:
    truth, pairs = predicted
    draw, found = np.random.default_rng(2), []
    for _ in range(200):
        kept = draw.integers(0, ROWS, ROWS).tolist()
        right = [truth[place] for place in kept]
        ours, theirs = (score(right, [int(side.rows[place]) for place in kept]) for side in pairs[0])
        found.append(ours - theirs)
    assert row_error(pairs, metric, truth) == pytest.approx(float(np.std(found)), rel=0.25)  # both are estimates


def test_of_a_mean_the_jackknife_is_the_formula(predicted: tuple[list[int], list[Pair]]) -> None:
    truth, pairs = predicted
    as_values: list[Pair] = [
        (
            Outcomes("values", [float(a == b) for a, b in zip(truth, ours.rows, strict=True)]),
            Outcomes("values", [float(a == b) for a, b in zip(truth, theirs.rows, strict=True)]),
        )
        for ours, theirs in pairs
    ]
    by_hand = np.mean([np.subtract(ours.rows, theirs.rows) for ours, theirs in as_values], axis=0)
    exact = row_error(as_values, "accuracy", truth)
    assert exact == pytest.approx(float(np.std(by_hand, ddof=1)) / math.sqrt(ROWS))
    assert row_error(pairs, "accuracy", truth) == pytest.approx(exact, rel=4 / math.sqrt(2 * GROUPS))
    assert accuracy(truth, [int(name) for name in pairs[0][0].rows]) == pytest.approx(np.mean(as_values[0][0].rows))


def test_what_is_the_seeds_own_is_not_counted_again() -> None:
    """Rows that favour nobody, so that arms differ by chance, anew in every seed; and rows that each favour one arm."""
    draw, mine, added = np.random.default_rng(3), np.zeros(2000), []
    for favour in (0.0, 0.5):
        rows = draw.normal(0.0, favour, 2000)
        ours = [Outcomes("values", (rows + draw.normal(0.0, 1.0, 2000)).tolist()) for _ in range(4)]
        pairs = [(each, Outcomes("values", mine.tolist())) for each in ours]
        added.append(row_error(pairs, "loss", ()))
    assert added[0] < 0.3 / math.sqrt(2000)
    assert added[1] == pytest.approx(0.5 / math.sqrt(2000), rel=0.2)


def test_the_interval_over_rows_is_the_wider_one() -> None:
    of_seeds = paired([0.02, 0.021, 0.019], LEVEL)
    both = widened(of_seeds, 0.01, 400, LEVEL)
    half = math.hypot(of_seeds.high - of_seeds.mean, t_quantile((1 + LEVEL) / 2, 200) * 0.01)
    assert (both.low, both.mean, both.high) == pytest.approx((0.02 - half, 0.02, 0.02 + half))
    assert both.detectable > of_seeds.detectable
    assert widened(of_seeds, 0.0, 400, LEVEL) == pytest.approx(of_seeds)


def by_row(plan: Plan, training: Training, *, flips: int) -> tuple[float, str]:
    """Accuracy and outcomes of a training that gets other rows right than the winner does, more or fewer of them."""
    right = [1.0] * plan.test_rows
    gains = {"trial-3": 0, "trial-5": flips}[training.arm]
    lost = range(40) if training.arm == "trial-3" else range(40, 80)
    for place in lost:
        right[place] = 0.0
    for place in range(40, 40 + gains):
        right[place] = 1.0
    return sum(right) / plan.test_rows, encoded(Outcomes("values", right))


def filled(plan: Plan, *, flips: int, told: bool) -> Scores:
    scores = Scores()
    while trainings := next_trainings(plan, scores):
        for training in trainings:
            value, outcomes = by_row(plan, training, flips=flips)
            scores.add(training, {plan.metric: value, "seconds": 1.0}, outcomes if told else "")
    return scores


def test_seeds_that_agree_on_these_rows_claim_no_gain_that_other_rows_might_not_show() -> None:
    """Five rows of 400 more in every seed: plain over seeds, but 35 rows speak for one arm and 40 for the other."""
    plan = make_plan([arm("trial-3", "finalist"), arm("trial-5", "finalist")], seeds=8, rows=400)
    alone = conclude(plan, filled(plan, flips=5, told=False))["comparisons"][0]
    both = conclude(plan, filled(plan, flips=5, told=True))["comparisons"][0]
    assert (alone["verdict"], alone["row_error"]) == ("better", None)
    assert both["verdict"] == "no clear difference"
    assert both["row_error"] == pytest.approx(math.sqrt(75 / 400) / 20, rel=0.01)
    assert both["low"] < alone["low"] < alone["high"] < both["high"]
    assert conclude(plan, filled(plan, flips=39, told=True))["comparisons"][0]["verdict"] == "better"


def test_where_rows_are_too_few_to_decide_it_is_rows_that_are_asked_for() -> None:
    small = replace(arm("trial-5", "finalist"), trainable_params=10)
    plan = make_plan([arm("trial-3", "finalist"), small], seeds=8, rows=400)
    found = recommend(plan, filled(plan, flips=0, told=True), with_suggested=False)
    (candidate,) = found.others
    assert (candidate.standing, candidate.needed) == ("undecided", None)
    assert candidate.rows is not None
    assert candidate.rows > plan.test_rows
    text = conclude(plan, filled(plan, flips=0, told=True))["recommendation"]["text"]
    assert f"these test rows are too few to decide; about {candidate.rows:,} would do, with more seeds" in text


def test_the_flattery_of_the_search_is_held_against_fresh_seeds_on_the_same_rows() -> None:
    plan = make_plan([arm("trial-3", "finalist")], seeds=4)
    scores = Scores()
    fresh = [0.88, 0.86, 0.87, 0.87]
    for seed, value in zip(plan.seeds, fresh, strict=True):
        one = Training(arm="trial-3", seed=seed, learning_rate=1e-3, split="test")
        scores.add(one, {"accuracy": 0.8, "seconds": 1.0})
        scores.add(replace(one, split="validation"), {"accuracy": value})
    found = conclude(plan, scores)["selection_optimism"]
    assert (found["validation"], found["verified"], found["fresh"]) == pytest.approx((0.9, 0.8, 0.87))
    wanted = paired([0.9 - value for value in fresh])
    assert (found["optimism"], found["low"], found["high"]) == pytest.approx(wanted[:3])
    scores.add(replace(one, split="validation"), {})  # it diverged there
    assert "low" not in conclude(plan, scores)["selection_optimism"]


def test_two_trained_models_are_told_apart_by_rows_alone(predicted: tuple[list[int], list[Pair]]) -> None:
    truth, pairs = predicted
    ours, theirs = pairs[0]
    right = [Outcomes("values", [float(a == b) for a, b in zip(side.rows, truth, strict=True)]) for side in pairs[0]]
    plain, jackknife = between(*right, "accuracy", truth), between(ours, theirs, "accuracy", truth)
    gains = [a - b for a, b in zip(right[0].rows, right[1].rows, strict=True)]
    error = np.std(gains, ddof=1) / math.sqrt(ROWS)
    assert plain.mean == pytest.approx(accuracy(truth, list(ours.rows)) - accuracy(truth, list(theirs.rows)))
    assert plain.high - plain.mean == pytest.approx(t_quantile((1 + LEVEL) / 2, ROWS - 1) * error)
    assert jackknife.mean == pytest.approx(plain.mean)
    assert jackknife.high - jackknife.low == pytest.approx(plain.high - plain.low, rel=0.35)
    f1 = between(ours, theirs, "macro_f1", truth)
    assert f1.mean == pytest.approx(macro_f1(truth, list(ours.rows)) - macro_f1(truth, list(theirs.rows)))
    assert f1.low > 0
    assert between(ours, ours, "macro_f1", truth)[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("level", [0.5, 0.9, LEVEL])
def test_a_probability_is_that_of_the_interval_over_seeds_and_rows_that_ends_there(level: float) -> None:
    of_seeds = paired([0.02, -0.01, 0.03, 0.0], level)
    error = (of_seeds.high - of_seeds.mean) / t_quantile((1.0 + level) / 2.0, 3)
    found = widened(of_seeds, 0.01, 400, level)
    errors = [(error, 3), (0.01, freedom_of(400))]
    assert chance_above(found.mean - found.low, errors) == pytest.approx((1.0 + level) / 2.0, abs=2e-6)
    assert chance_above(found.mean - found.high, errors) == pytest.approx((1.0 - level) / 2.0, abs=2e-6)
