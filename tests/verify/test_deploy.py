"""Which adapter to deploy: a cut is advised only where it is not worse, and nothing trained small is as good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from automl.trial import Cut
from automl.verify.arms import choose_arms, choose_comparisons, lower_ranks
from automl.verify.conclude import conclude
from automl.verify.plan import Arm, Training, all_trainings, trial_spec
from automl.verify.protocol import DIVERGED, Scores, next_trainings, values
from automl.verify.ranks import cost
from tests.verify.test_arms import DERIVE, candidates, trial
from tests.verify.test_lower_ranks import lower
from tests.verify.verify_cases import arm, make_plan, noisy, run

WINNER = replace(arm("trial-3", "finalist", params=4000))


def of_rank(made: Arm, rank: int) -> Arm:
    return replace(made, hyper=replace(made.hyper, rank=rank))


def cut(kind: str, params: int, rank: int) -> Arm:
    made = replace(arm("trial-3", "squeezed"), name=kind, kind=kind, trainable_params=params)  # type: ignore[arg-type]
    return of_rank(replace(made, cut=Cut(kind, params, even=kind == "even-cut")), rank)


ARMS = [of_rank(WINNER, 16), lower(2), cut("squeezed", 500, 2), cut("even-cut", 500, 2)]


def result(effects: Mapping[str, float], arms: list[Arm] | None = None, *, sd: float = 0.001) -> dict[str, Any]:
    plan = make_plan(arms or ARMS, seeds=4, rows=4000)
    score = noisy(effects, sd=sd, study=5)
    scores, made = run(plan, score)
    assert not any(training.arm in ("squeezed", "even-cut") for training in made)
    for training in list(made):
        if training.arm == plan.winner.name:  # what the workers find out of the winner's adapter
            for name in ("squeezed", "even-cut"):
                one = replace(training, arm=name)
                scores.add(one, {plan.metric: score(one)})
    return conclude(plan, scores)


def test_where_the_low_rank_is_as_good_it_is_trained_and_the_cut_is_not_advised() -> None:
    found = result({})
    assert found["deploy"]["arm"] == "rank-2"
    assert found["deploy"]["text"].startswith("one trained at rank 2; trial 3 whole has 4,000 parameters")


def test_where_only_the_cut_is_as_good_it_is_deployed() -> None:
    found = result({"rank-2": -0.1, "even-cut": -0.05})
    assert found["deploy"]["arm"] == "squeezed"
    assert found["deploy"]["text"].startswith("the winner's adapter, cut globally; ")
    assert "less than 0.01 worse" in found["deploy"]["text"]
    assert found["recommendation"]["arm"] == "trial-3"  # to train with


def test_where_both_are_worse_the_whole_is_deployed() -> None:
    found = result({"rank-2": -0.1, "squeezed": -0.05, "even-cut": -0.2})
    assert found["deploy"]["arm"] == "trial-3"
    assert ", worse (-0.0487 [" in found["deploy"]["text"]
    assert [each["verdict"] for each in found["comparisons"] if each["arm"] == "squeezed"][-1] == "better"


def test_a_cut_is_never_advised_over_something_trained_small_that_is_better_though_not_shown_to_be_enough() -> None:
    """Both are a little worse than the whole; the trained one is the better of them, but too unsteady to be shown."""
    found = result({"rank-2": -0.004, "squeezed": -0.0045, "even-cut": -0.2}, sd=0.0025)
    assert found["deploy"]["arm"] != "squeezed"


def test_without_anything_trained_at_its_size_that_is_said() -> None:
    found = result({"even-cut": -0.05}, [ARMS[0], *ARMS[2:]])
    assert found["deploy"]["arm"] == "squeezed"
    assert found["deploy"]["text"].endswith(
        "no adapter was trained at that size, which may be better (verify: {squeeze: all})"
    )


def test_cuts_have_the_sizes_that_they_are_compared_at() -> None:
    one = sum(map(cost, DERIVE.layers("all-linear")))
    (squeezed, even) = candidates(trial(0, 0.9, rank=16)).cuts(2 * one + 17)
    assert (squeezed.cut, even.cut) == (Cut("squeezed", 2 * one + 17, False), Cut("even-cut", 2 * one, True))
    assert squeezed.hyper.rank == even.hyper.rank == 2
    whole = candidates(trial(0, 0.9, rank=16)).finalists(1)[0].trainable_params
    assert whole - even.trainable_params == 14 * one
    assert [each.kind for each in candidates(trial(0, 0.9, rank=16)).cuts(one // 2)] == ["squeezed"]
    assert candidates(trial(0, 0.9, rank=16)).cuts(16 * one) == []


@pytest.mark.parametrize(("even", "ranks"), [(1, [4]), (2, [2]), (8, [8]), (12, [4]), (None, [4])])
def test_what_is_trained_small_has_the_cuts_size_where_that_answers_whether_rank_binds(
    even: int | None, ranks: list[int]
) -> None:
    assert lower_ranks(16, "auto", even) == ranks
    assert set(lower_ranks(16, "all", even)) == {4, 8, *([] if even is None else [even])}


def test_the_question_of_the_cut_is_one_of_its_own() -> None:
    one = sum(map(cost, DERIVE.layers("all-linear")))
    arms = choose_arms(candidates(trial(0, 0.9, rank=16)), finalists=1, squeeze="auto", knee=2 * one)
    assert [each.kind for each in arms] == ["finalist", "default", "lower", "squeezed", "even-cut"]
    mine = [(each.arm, each.against) for each in choose_comparisons(arms) if each.arm == "squeezed"]
    assert mine == [("squeezed", "trial-0"), ("squeezed", "rank-2"), ("squeezed", "even-cut")]
    assert not [arm for arm in choose_arms(candidates(trial(0, 0.9, rank=16)), finalists=1, knee=2 * one) if arm.cut]


def test_only_the_winner_is_examined_for_cuts_and_only_on_test_rows() -> None:
    plan = make_plan(ARMS, seeds=4)
    asked = {training.arm: trial_spec(plan, training, 0).examination for training in all_trainings(plan)}
    assert set(asked) == {"trial-3", "rank-2"}
    assert asked["trial-3"] is not None
    assert [each.name for each in asked["trial-3"].cuts] == ["squeezed", "even-cut"]
    assert asked["trial-3"].on_validation
    assert asked["rank-2"] is not None
    assert not asked["rank-2"].cuts
    tuning = Training(arm="rank-2", seed=plan.tuning_seeds[0], learning_rate=4e-3, split="validation")
    assert trial_spec(plan, tuning, 0).examination is None


def test_a_training_that_diverged_leaves_nothing_to_cut() -> None:
    plan, scores = make_plan(ARMS, seeds=4), Scores()
    training = next_trainings(plan, scores)[0]
    assert training.arm == "trial-3"
    scores.add(training, {DIVERGED: 1.0})
    assert values(plan, scores, plan.arm("squeezed")) == {training.seed: plan.majority["accuracy"]}
