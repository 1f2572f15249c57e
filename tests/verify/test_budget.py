"""Seeds that are added until all is decided or the budget is spent: when it ends, how often it errs, how it resumes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from automl.space.load import parse_space
from automl.storage.verification import Score
from automl.verify.conclude import conclude
from automl.verify.plan import Training
from automl.verify.protocol import SECONDS, Scores, next_trainings
from automl.verify.statistics import LEVEL
from tests.verify.verify_cases import arm, make_plan, noisy, run

TWO = (arm("trial-3", "finalist"), arm("trial-5", "finalist"))
MUCH = 1e6


def trained(made: list[Training]) -> dict[str, int]:
    return dict(Counter(training.arm for training in made))


@pytest.mark.parametrize(
    ("effect", "sd", "seeds"),
    [(0.2, 0.01, 4), (0.02, 0.01, 16), (0.0, 0.001, 4), (0.0, 0.1, 32)],
    ids=["plainly better", "a little better", "plainly equal", "never decided"],
)
def test_seeds_are_added_until_it_is_decided(effect: float, sd: float, seeds: int) -> None:
    _, made = run(make_plan(TWO, seeds=4, budget=MUCH, rows=4000), noisy({"trial-5": effect}, sd=sd, study=2))
    assert trained(made) == {"trial-3": seeds, "trial-5": seeds}


@pytest.mark.parametrize(("budget", "seeds"), [(1.0, 4), (31.0, 4), (32.0, 8), (63.0, 8), (64.0, 16), (128.0, 32)])
def test_no_stage_is_begun_that_would_end_after_the_budget(budget: float, seeds: int) -> None:
    _, made = run(make_plan(TWO, seeds=4, budget=budget), noisy({}, sd=0.1, study=2))  # 2 s each, never decided
    assert trained(made) == {"trial-3": seeds, "trial-5": seeds}


def test_the_space_file_gives_budget_and_margin(tmp_path: Path) -> None:
    text = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: rows.csv}\n"
    plain = parse_space(text, "s.yaml", tmp_path)
    spec = parse_space(text + "verify: {budget: 20m, margin: 0.02, seeds: 5}\n", "s.yaml", tmp_path)
    assert (spec.verify.budget, spec.verify.margin, spec.verify.most_seeds) == (1200.0, 0.02, 40)
    assert plain.verify.most_seeds == plain.verify.seeds
    assert plain.sha256 == spec.sha256  # a study may be verified anew


def test_only_the_arms_of_what_is_open_go_on() -> None:
    arms = [*TWO, arm("default", "default")]
    _, made = run(make_plan(arms, seeds=4, budget=MUCH), noisy({"default": -0.5}, sd=0.05, study=4))
    assert trained(made) == {"trial-3": 32, "trial-5": 32, "default": 4}


def test_the_looks_share_the_chance_of_error() -> None:
    plan = make_plan([*TWO, arm("default", "default")], seeds=4, budget=MUCH)
    assert [each.level for each in plan.comparisons] == pytest.approx([1 - (1 - LEVEL) / 2 / 4] * 2)


@pytest.mark.parametrize("seeds", [3, 4])
def test_copies_are_called_different_in_at_most_5_percent_however_long_it_goes_on(seeds: int) -> None:
    plan, alarms = make_plan(TWO, seeds=seeds, budget=MUCH), 0
    for study in range(400):
        scores, _ = run(plan, noisy({}, sd=0.02, study=study))
        alarms += conclude(plan, scores)["comparisons"][0]["verdict"] != "no clear difference"
    assert alarms / 400 <= 0.05


def test_killed_within_a_stage_it_decides_the_same() -> None:
    plan, kept, made = make_plan(TWO, seeds=4, budget=70.0), [], 0
    noise = noisy({}, sd=0.1, study=2)
    while trainings := next_trainings(plan, Scores(kept)):
        training = trainings[0]  # killed after each
        made += 1
        for metric, value in ((plan.metric, noise(training)), (SECONDS, 2.0)):
            kept.append(
                Score(
                    arm=training.arm,
                    seed=training.seed,
                    learning_rate=training.learning_rate,
                    split=training.split,
                    metric=metric,
                    value=value,
                )
            )
    assert made == 2 * 16


def test_a_plan_without_a_budget_is_recorded_as_before_there_were_budgets() -> None:
    plain = make_plan(TWO).as_dict()
    assert not {"looks", "budget_seconds"} & set(plain)
    budgeted = make_plan(TWO, seeds=4, budget=60.0).as_dict()
    assert (budgeted["looks"], budgeted["budget_seconds"]) == ([4, 8, 16, 32], 60.0)
