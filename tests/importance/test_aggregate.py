"""Many trials together: who may speak, how much each weighs, how well they agree, and when to abstain."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from automl.importance.aggregate import (
    Aggregate,
    TrialEvidence,
    aggregate,
    is_eligible,
    spearman,
    trial_weights,
)
from automl.trial import ModuleImportance

NAMES = tuple(f"layer.{index}" for index in range(8))


def importance(name: str, score: float, *, rank: int = 2, held_out: float | None = None) -> ModuleImportance:
    """A module whose first component has two thirds of the score."""
    parts = [2.0**-index for index in range(rank)]
    return ModuleImportance(
        module=name,
        rank=rank,
        in_features=32,
        out_features=32,
        step=40,
        fraction_done=1.0,
        samples=7,
        sensitivity=score,
        uncertainty=score / 2,
        effective_rank=1.5,
        relative_update=0.1,
        components=tuple(score * part / sum(parts) for part in parts),
        held_out=held_out,
        held_out_error=None if held_out is None else 0.1,
    )


def trial(number: int, scores: dict[str, float], *, loss: float = 0.5, rank: int = 2) -> TrialEvidence:
    modules = [importance(name, score, rank=rank) for name, score in scores.items()]
    return TrialEvidence(trial=number, loss=loss, importances=modules)


def similar(count: int, *, noise: float = 0.1, seed: int = 0) -> list[TrialEvidence]:
    """Trials that agree up to a factor of exp(noise), on modules that become more important with depth."""
    draw = random.Random(seed)
    return [
        trial(
            number,
            {name: (index + 1) * math.exp(draw.gauss(0, noise)) for index, name in enumerate(NAMES)},
            loss=0.5 + number / 50,
        )
        for number in range(count)
    ]


def together(evidence: list[TrialEvidence]) -> Aggregate:
    found = aggregate(evidence, NAMES)
    assert found is not None
    return found


def test_trials_that_agree_are_evidence() -> None:
    found = together(similar(6))
    assert found.shortage == ""
    assert sum(module.share for module in found.modules) == pytest.approx(1.0)
    assert [module.module for module in found.modules] == list(NAMES)
    assert found.modules[-1].share == max(module.share for module in found.modules)
    assert all(module.low <= module.share <= module.high for module in found.modules)
    assert found.modules[-1].top_half == 1.0
    assert found.modules[0].top_half == 0.0
    assert found.stability is not None
    assert found.least_stability is not None
    assert 0.8 < found.least_stability <= found.stability


def test_trials_that_disagree_are_not() -> None:
    found = together(similar(6, noise=3.0))
    assert "mean rank correlation between trials is" in found.shortage


def test_one_trial_is_not() -> None:
    assert together(similar(1)).shortage == "1.0 effective trials of at least 2"


def test_a_trial_far_ahead_weighs_at_most_half() -> None:
    weights = trial_weights([0.1, 0.5, 0.51, 0.52])
    assert weights[0] == pytest.approx(0.5)
    assert weights.sum() == pytest.approx(1.0)
    assert np.all(np.diff(weights) < 0)


def test_equal_losses_weigh_the_same() -> None:
    assert trial_weights([0.4, 0.4, 0.4]).tolist() == pytest.approx([1 / 3] * 3)


def test_trials_with_other_scales_count_the_same() -> None:
    plain = similar(5)
    scaled = [
        trial(each.trial, {module.module: 1000.0 * module.sensitivity for module in each.importances}, loss=each.loss)
        if each.trial == 2
        else each
        for each in plain
    ]
    assert [module.share for module in together(scaled).modules] == pytest.approx(
        [module.share for module in together(plain).modules]
    )


# A qv trial knows two modules only; what it says of them must not move the others against each other.
def test_a_trial_with_fewer_targets_informs_its_own_modules_only() -> None:
    whole = similar(4, noise=0.0)
    part = trial(9, {NAMES[0]: 8.0, NAMES[1]: 1.0, NAMES[2]: 3.0}, loss=0.5)
    alone, mixed = together(whole), together([*whole, part])
    ratio = [mixed.modules[index].share / alone.modules[index].share for index in range(8)]
    assert ratio[3:] == pytest.approx([ratio[3]] * 5)
    assert ratio[0] > ratio[3] > ratio[1]


def test_trials_without_anything_in_common_are_left_out() -> None:
    stranger = trial(9, {"pooler": 1.0, NAMES[0]: 5.0})
    found = together([*similar(3), stranger])
    assert 9 not in found.weights


def test_nobody_who_knows_all_modules_is_nothing() -> None:
    assert aggregate([trial(0, {NAMES[0]: 1.0, NAMES[1]: 2.0})], NAMES) is None


def test_held_out_evidence_is_averaged_with_its_error() -> None:
    values = {0: -0.2, 1: -0.4, 2: -0.3}
    evidence = [
        TrialEvidence(
            trial=number,
            loss=0.5,
            importances=[importance(name, 1.0, held_out=value if name == NAMES[0] else 1.0) for name in NAMES],
        )
        for number, value in values.items()
    ]
    module = together(evidence).modules[0]
    assert module.held_out == pytest.approx(-0.3)
    assert module.held_out_error == pytest.approx(max(0.1 / math.sqrt(3), 0.1 / math.sqrt(3)))


@pytest.mark.parametrize(
    ("change", "baseline", "expected"),
    [
        ({}, None, True),
        ({}, 0.6, True),
        ({}, 0.4, False),
        ({"fraction_done": 0.49}, None, False),
        ({"fraction_done": 0.5}, None, True),
        ({"sensitivity": 0.0}, None, False),
    ],
    ids=["finished", "better than nothing", "worse than nothing", "too short", "half done", "no update"],
)
def test_who_may_speak(change: dict[str, float], baseline: float | None, expected: bool) -> None:
    from dataclasses import replace

    modules = [replace(importance("a", 1.0), **change)]
    assert is_eligible(modules, 0.5, baseline) is expected


def test_spearman_knows_ties_and_constants() -> None:
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0)
    assert spearman([1, 2, 2, 3], [4, 3, 3, 1]) == pytest.approx(-1.0)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0
