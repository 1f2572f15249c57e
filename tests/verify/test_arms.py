"""Which configurations are verified, and that competing rank patterns cost the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.errors import SearchError
from automl.lora import Hyperparameters, LinearShape
from automl.metric import standard_error
from automl.setup.prepare import Derivation
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSpace
from automl.storage.trials import TrialRow
from automl.trial import BestCheckpoint, Scalar, TrialState
from automl.verify.arms import Candidates, choose_arms, choose_comparisons
from automl.verify.plan import GRID
from automl.verify.ranks import cost, even_ranks, random_ranks, spent
from automl.verify.statistics import LEVEL, joint_level
from tests.architectures import tiny_model

SPACE = SearchSpace(
    parameters=(
        IntParameter(name="rank", low=1, high=32),
        FloatParameter(name="learning_rate", low=1e-5, high=1.0, log=True),
        CategoricalParameter(name="target", choices=("qv", "all-linear")),
    ),
    fixed={"alpha_ratio": 2},
)
ADALORA = replace(SPACE, fixed={**SPACE.fixed, "method": "adalora"})
DERIVE = Derivation(tiny_model("bert", kind="classification"), {})


def trial(number: int, value: float | None, state: TrialState = TrialState.COMPLETE, **params: Scalar) -> TrialRow:
    return TrialRow(
        number=number,
        state=state,
        value=value,
        params={"rank": 8, "learning_rate": 1e-3, "target": "all-linear", **params},
        steps=10,
        seconds=1.0,
        stop_reason=None,
        adapter=None,
    )


def candidates(*trials: TrialRow, metric: str = "accuracy", rows: int = 100) -> Candidates:
    return Candidates(trials, SPACE, DERIVE, metric=metric, rows=rows)


def test_what_comes_from_a_best_checkpoint_is_trained_to_its_step() -> None:
    best = replace(trial(0, 0.9), checkpoint=BestCheckpoint(step=6, metrics={"accuracy": 0.9}))
    found = choose_arms(candidates(best, trial(1, 0.8, rank=4)), finalists=2, squeeze="auto")
    steps = {arm.name: arm.steps for arm in found}
    assert steps["trial-0"] == steps["rank-2"] == 6
    assert steps["trial-1"] is steps["default"] is None


def test_finalists_are_the_best_complete_trials_and_no_configuration_twice() -> None:
    found = candidates(
        trial(0, 0.7),
        trial(1, 0.9, rank=4),
        trial(2, 0.99, TrialState.PRUNED, rank=2),
        trial(3, 0.9, rank=4),
        trial(4, 0.8, rank=16),
        trial(5, None, TrialState.FAIL),
    )
    assert [arm.name for arm in found.finalists(3)] == ["trial-1", "trial-4", "trial-0"]
    assert found.best_value == 0.9
    lowest = candidates(trial(0, 0.7), trial(1, 0.9, rank=4), metric="loss")
    assert [arm.name for arm in lowest.finalists(1)] == ["trial-0"]


def test_without_a_complete_trial_there_is_nothing_to_verify() -> None:
    with pytest.raises(SearchError, match="no trial is complete"):
        candidates(trial(0, 0.9, TrialState.PRUNED))


def test_the_smallest_is_within_noise_of_the_best() -> None:
    # 0.9 on 100 rows has a standard error of 0.03.
    rows = [trial(0, 0.9, rank=8), trial(1, 0.88, rank=4), trial(2, 0.875, rank=2), trial(3, 0.8, rank=1)]
    found = candidates(*rows).smallest()
    assert found is not None
    assert (found.name, found.kind) == ("trial-2", "smallest")
    assert candidates(trial(0, 0.9, rank=1), trial(1, 0.9, rank=2)).smallest() is None
    assert candidates(*rows, rows=100_000).smallest() is None
    by_loss = candidates(trial(0, 1.0, rank=8), trial(1, 1.04, rank=2), trial(2, 1.06, rank=1), metric="loss")
    assert standard_error("loss", by_loss.best_value, 100) == pytest.approx(0.05)
    smallest = by_loss.smallest()
    assert smallest is not None
    assert smallest.name == "trial-1"


def test_the_default_is_verified_once() -> None:
    default = Hyperparameters()
    same = trial(0, 0.9, rank=default.rank, learning_rate=default.learning_rate)  # alpha_ratio 2: alpha 16
    assert [arm.name for arm in choose_arms(candidates(same), finalists=2)] == ["trial-0"]
    arms = choose_arms(candidates(trial(0, 0.9)), finalists=2)
    assert [arm.name for arm in arms] == ["trial-0", "default"]
    assert arms[1].hyper == default


def test_comparisons_of_one_question_share_its_false_alarms() -> None:
    rows = [trial(0, 0.9, rank=8), trial(1, 0.9, rank=16), trial(2, 0.89, rank=2)]
    layers = DERIVE.layers("all-linear")
    ranks = even_ranks(layers, 8 * sum(map(cost, layers)))
    found = choose_comparisons(choose_arms(candidates(*rows), finalists=2, suggested=ranks))
    assert [(each.arm, each.against, each.level) for each in found] == [
        ("trial-1", "trial-0", joint_level(3)),
        ("trial-0", "default", joint_level(3)),
        ("trial-2", "trial-0", joint_level(3)),
        ("suggested", "uniform", LEVEL),
        ("suggested", "random", LEVEL),
    ]


@given(seed=st.integers(0, 2**31), rank=st.integers(2, 12), target=st.sampled_from(["qv", "all-linear"]))
def test_arms_of_a_pattern_have_equal_parameters_within_one_component(seed: int, rank: int, target: str) -> None:
    layers = DERIVE.layers(target)
    suggested = uneven(layers, rank, seed)
    found = candidates(trial(0, 0.9, rank=rank, target=target))
    arms = {arm.kind: arm for arm in found.pattern_arms(suggested, seed=seed)}
    spread = [arm.trainable_params for arm in arms.values()]
    assert max(spread) - min(spread) < max(map(cost, layers))
    assert max(spread) == arms["suggested"].trainable_params
    base = found.finalists(1)[0].hyper
    for arm in arms.values():
        assert arm.hyper.scaling == base.scaling
        assert arm.learning_rates == tuple(factor * base.learning_rate for factor in GRID)
        assert all(arm.hyper.rank_of(layer.path) >= 1 for layer in layers)
    evenly = [arms["uniform"].hyper.rank_of(layer.path) for layer in layers]
    assert max(evenly) - min(evenly) <= 1
    assert {layer.path: arms["suggested"].hyper.rank_of(layer.path) for layer in layers} == suggested


def uneven(layers: list[LinearShape], rank: int, seed: int) -> Mapping[str, int]:
    """Some pattern of at most the parameters of that rank everywhere."""
    budget = rank * sum(map(cost, layers))
    return random_ranks(layers, budget, seed=seed + 1, low=max(1, rank // 2), high=4 * rank)


def test_adalora_is_held_against_lora_with_the_parameters_it_ended_with() -> None:
    layers = DERIVE.layers("all-linear")
    kept = {layer.path: 1 if number % 2 else 6 for number, layer in enumerate(layers[1:])}  # the first one has lost all
    rows, space = [trial(0, 0.7, rank=2), trial(4, 0.9, rank=3)], ADALORA
    arms = choose_arms(Candidates(rows, space, DERIVE, metric="accuracy", rows=100, final_ranks={4: kept}), finalists=2)
    (equal,) = (arm for arm in arms if arm.kind == "equal")
    budget = sum(kept.get(layer.path, 0) * cost(layer) for layer in layers)
    assert arms[0].hyper.method == "adalora"
    assert arms[0].trainable_params - equal.trainable_params < max(map(cost, layers))
    assert arms[0].trainable_params >= equal.trainable_params
    assert spent(layers, {layer.path: equal.hyper.rank_of(layer.path) for layer in layers}) <= budget
    assert (equal.name, equal.trial, equal.hyper.method) == ("equal-lora", 4, "lora")
    assert equal.hyper.scaling == arms[0].hyper.scaling
    assert len(equal.learning_rates) == len(GRID)
    assert [(each.arm, each.against) for each in choose_comparisons(arms)][-1] == ("trial-4", "equal-lora")


def test_lora_needs_no_comparison_with_lora() -> None:
    ranks = {layer.path: 8 for layer in DERIVE.layers("all-linear")}
    found = Candidates([trial(0, 0.9)], SPACE, DERIVE, metric="accuracy", rows=100, final_ranks={0: ranks})
    assert found.equal_lora(found.finalists(1)) is None


def test_ranks_for_modules_that_no_trial_has_are_refused() -> None:
    with pytest.raises(SearchError, match="ranks for 1 modules are suggested"):
        candidates(trial(0, 0.9)).pattern_arms({"bert.other": 2}, seed=0)


LAYERS = [LinearShape(f"layer.{number}", 32, 32 if number % 2 else 128) for number in range(6)]


def test_even_ranks_spend_a_whole_rank_everywhere_and_spread_the_rest() -> None:
    once = sum(map(cost, LAYERS))
    assert set(even_ranks(LAYERS, 3 * once).values()) == {3}
    more = even_ranks(LAYERS, 3 * once + 400)
    assert set(more.values()) == {3, 4}
    assert 3 * once < spent(LAYERS, more) <= 3 * once + 400
    with pytest.raises(ValueError, match="fewer than rank 1 in 6 layers"):
        even_ranks(LAYERS, once - 1)


def test_random_ranks_stay_between_their_bounds_and_depend_on_the_seed_alone() -> None:
    budget = 5 * sum(map(cost, LAYERS))
    drawn = [random_ranks(LAYERS, budget, seed=seed, low=2, high=12) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(2 <= rank <= 12 for rank in drawn[0].values())
    with pytest.raises(ValueError, match="not between rank 6 and rank 12"):
        random_ranks(LAYERS, budget, seed=1, low=6, high=12)
