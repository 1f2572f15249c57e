"""Learning rates searched at one alpha: what a trial is trained with, and where the coordinate makes no sense."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.space.assemble import assemble, constraint_values
from automl.space.coordinate import in_words
from automl.space.load import parse_space
from automl.space.spec import SearchSpace, SweepSpec

HEAD = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: a.csv}\nspace:\n"
RATE = "  learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true%s}\n"
AT = RATE % ", at_alpha: 32"
RANK = "  rank: {type: int, low: 1, high: 64}\n"
RATIO = "  alpha_ratio: {type: float, low: 0.5, high: 4}\n"


def spec_of(rest: str) -> SweepSpec:
    return parse_space(HEAD + rest, "s.yaml", Path("/there"))


def rate_of(space: SearchSpace, **params: bool | int | float | str) -> float:
    return assemble(space, {"learning_rate": 1e-3, **params}).learning_rate


def test_the_rate_follows_alpha() -> None:
    space = spec_of(AT + RANK + RATIO).space
    assert rate_of(space, rank=16, alpha_ratio=2.0) == 1e-3
    assert rate_of(space, rank=1, alpha_ratio=1.0) == pytest.approx(1e-3 * math.sqrt(32))
    assert rate_of(space, rank=16, alpha_ratio=1.0) / rate_of(space, rank=1, alpha_ratio=1.0) == pytest.approx(1 / 4)
    assert rate_of(spec_of(RATE % "" + RANK + RATIO).space, rank=1, alpha_ratio=1.0) == 1e-3


def test_at_a_fixed_alpha_it_does_not_move_with_the_rank() -> None:
    space = spec_of(AT + RANK + "fixed: {alpha: 8}\n").space
    assert rate_of(space, rank=1) == rate_of(space, rank=64) == pytest.approx(2e-3)


def test_rank_stabilised_it_goes_with_the_fourth_root_of_the_rank() -> None:
    space = spec_of(AT + RANK + "fixed: {alpha: 32, use_rslora: true}\n").space
    assert rate_of(space, rank=1) == pytest.approx(1e-3)
    assert rate_of(space, rank=16) == pytest.approx(1e-3 / 2)
    plain = spec_of(AT + RANK + "fixed: {alpha: 128}\n").space  # the same scale at rank 16: 32 / 4 = 128 / 16
    assert rate_of(plain, rank=16) == pytest.approx(rate_of(space, rank=16))


def test_rates_of_one_method_have_a_coordinate_of_their_own() -> None:
    methods = "  method: {type: categorical, choices: [lora, ia3]}\n"
    own = "  learning_rate.%s: {type: float, low: 1e-4, high: 1e-2, log: true%s}\n"
    space = spec_of(methods + own % ("lora", ", at_alpha: 64") + own % ("ia3", "")).space
    lora = assemble(space, {"method": "lora", "learning_rate.lora": 1e-3})
    assert lora.learning_rate == pytest.approx(1e-3 * math.sqrt(64 / lora.alpha))
    assert assemble(space, {"method": "ia3", "learning_rate.ia3": 1e-3}).learning_rate == 1e-3
    assert in_words(space) == "learning_rate.lora 64"


def test_constraints_read_what_is_searched() -> None:
    space = spec_of(AT + RANK + RATIO).space
    params = {"learning_rate": 1e-3, "rank": 1, "alpha_ratio": 1.0}
    assert constraint_values(space, params, assemble(space, params), {})["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (
            "  weight_decay: {type: float, low: 0, high: 1, at_alpha: 32}\n",
            "s.yaml:6:48: space.weight_decay.at_alpha: is known of learning rates alone, not of weight_decay",
        ),
        (AT + "fixed: {method: bitfit}\n", "space.learning_rate.at_alpha: method bitfit has no alpha; remove it"),
        (
            AT + "  method: {type: categorical, choices: [lora, ia3]}\n",
            "method ia3 has no alpha; give it rates of its own: learning_rate.ia3",
        ),
        (RATE % ", at_alpha: 0", "space.learning_rate.at_alpha: 0"),
        (RATE % ", at_alpha: 1e-300", "space.learning_rate.at_alpha: 1e-300 is below 0.01"),
        (RATE % "" + "fixed: {alpha: 1e-300}\n", "fixed.alpha: 1e-300 is below 1e-06"),
        (RATE % "" + "fixed: {alpha_ratio: 1e-300}\n", "fixed.alpha_ratio: 1e-300 is below 1e-06"),
        ("fixed: {learning_rate: 1e-300}\n", "fixed.learning_rate: 1e-300 is below 1e-12"),
        (RATE % ", at_alpha: .inf", "space.learning_rate.at_alpha"),
        (RATE % ", at_alpha: auto", "space.learning_rate.at_alpha: 'auto'"),
        ("  rank: {type: int, low: 1, high: 8, at_alpha: 32}\n", "space.rank.at_alpha"),
        (AT + "enqueue: [{learning_rate: 0.5}]\n", "between 0.0001 and 0.01 at alpha 32"),
    ],
)
def test_a_coordinate_without_a_meaning_is_refused_at_its_place(rest: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        spec_of(rest)
    (problem,) = refused.value.problems
    assert message in str(problem)
    assert "6:" in str(problem) or "7:" in str(problem)


def test_the_coordinate_gives_a_study_its_meaning_and_no_study_another() -> None:
    assert len({spec_of(RATE % at).sha256 for at in ("", ", at_alpha: 32", ", at_alpha: 16")}) == 3
    assert spec_of(RATE % "").sha256 == "0fb71201f8307df21f1d450fe4375838a7ae73965848d305f08a519b801bc8c1"
