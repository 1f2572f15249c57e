"""Assembled configurations: ratio, conditions, defaults, and that they always lie inside the space."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.lora import Hyperparameters
from automl.space.assemble import active_parameters, assemble, constraint_values
from automl.space.constraints import parse_constraint
from automl.space.extremes import names_of
from automl.space.load import parse_space
from automl.space.points import contains
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchSpace
from automl.trial import Scalar

HEAD = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: a.csv}\n"
WIDE = """\
space:
  rank: {type: int, low: 2, high: 32, log: true}
  alpha_ratio: {type: categorical, choices: [0.5, 1, 2]}
  target: {type: categorical, choices: [qv, mlp, all-linear]}
  dropout: {type: float, low: 0, high: 0.3, step: 0.1, when: {target: all-linear}}
  learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  weight_decay: {type: float, low: 0, high: 0.1}
  batch_size: {type: int, low: 8, high: 32, step: 8}
  warmup: {type: int, low: 0, high: 1}
  schedule: {type: categorical, choices: [linear, cosine], when: {dropout_free: 1}}
  use_rslora: {type: categorical, choices: [true, false], when: {rank: [16, 32]}}
fixed: {clip: 0.3}
""".replace("when: {dropout_free: 1}", "when: {use_rslora: true}")


def space_of(rest: str) -> SearchSpace:
    return parse_space(HEAD + rest, "s.yaml", Path("/there")).space


WIDE_SPACE = space_of(WIDE)


def draw(parameter: Parameter, data: st.DataObject) -> Scalar:
    """A value as a sampler might propose it."""
    match parameter:
        case CategoricalParameter(choices=choices):
            return data.draw(st.sampled_from(choices))
        case IntParameter(low=low, high=high, step=step):
            return low + step * data.draw(st.integers(0, (high - low) // step))
        case FloatParameter(low=low, high=high, step=None):
            return data.draw(st.floats(low, high))
        case FloatParameter(low=low, high=high, step=step):
            assert step is not None
            return low + step * data.draw(st.integers(0, round((high - low) / step)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_assembled_configurations_lie_inside_the_space(data: st.DataObject) -> None:
    space = WIDE_SPACE
    params: dict[str, Scalar] = {}
    for parameter in active_parameters(space, params):
        params[parameter.name] = draw(parameter, data)
        assert contains(parameter, params[parameter.name])
    hyper = assemble(space, params)
    assert hyper.alpha == params["alpha_ratio"] * params["rank"]  # type: ignore[operator]
    assert hyper.clip == 0.3
    assert hyper.rank == params["rank"]
    assert isinstance(hyper.warmup, float)
    assert ("dropout" in params) == (hyper.target == "all-linear")
    assert ("use_rslora" in params) == (hyper.rank in (16, 32))
    assert ("schedule" in params) == hyper.use_rslora
    values = constraint_values(space, params, hyper, {"trainable_params": 1.0})
    assert set(values) == set(names_of(space).kinds)


def test_defaults_fill_what_is_not_given() -> None:
    assert assemble(space_of("space: {dropout: auto}"), {}) == Hyperparameters()


def test_a_ratio_multiplies_the_rank_wherever_they_come_from() -> None:
    assert assemble(space_of("fixed: {alpha_ratio: 2, rank: 4}"), {}).alpha == 8.0
    assert assemble(space_of("fixed: {alpha_ratio: 0.5}"), {}).alpha == 4.0
    space = space_of("space: {rank: {type: int, low: 2, high: 8}}\nfixed: {alpha: 32}")
    assert assemble(space, {"rank": 4}).alpha == 32.0


def test_a_name_that_is_not_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="'dropout' is not a parameter of this space; it has rank"):
        assemble(space_of("space: {rank: {type: int, low: 2, high: 8}}"), {"dropout": 0.1})


@pytest.mark.parametrize("rank", range(1, 65))
def test_a_constraint_reads_the_ratio_that_was_sampled(rank: int) -> None:
    space = space_of(
        "space: {rank: {type: int, low: 1, high: 64}, alpha_ratio: {type: categorical, choices: [0.1, 9]}}"
    )
    for ratio in (0.1, 0.3, 0.7, 1.1):
        params = {"rank": rank, "alpha_ratio": ratio}
        values = constraint_values(space, params, assemble(space, params), {})
        for text in (f"alpha_ratio in [{ratio}]", f"alpha_ratio <= {ratio}", f"alpha == rank * {ratio}"):
            assert parse_constraint(text).violation(values) <= 0


@pytest.mark.parametrize(
    ("parameter", "value", "inside"),
    [
        (IntParameter(name="rank", low=2, high=8), 8, True),
        (IntParameter(name="rank", low=2, high=8), 9, False),
        (IntParameter(name="rank", low=2, high=8), 3.5, False),
        (IntParameter(name="rank", low=2, high=8, step=2), 5, False),
        (IntParameter(name="rank", low=0, high=8), True, False),
        (IntParameter(name="rank", low=2, high=8), "4", False),
        (FloatParameter(name="dropout", low=0.0, high=0.5, step=0.1), 0.3, True),
        (FloatParameter(name="dropout", low=0.0, high=0.5, step=0.1), 0.1 + 0.2, True),
        (FloatParameter(name="dropout", low=0.0, high=0.5, step=0.1), 0.25, False),
        (FloatParameter(name="dropout", low=0.0, high=0.5), 0, True),
        (CategoricalParameter(name="use_rslora", choices=(True, False)), 1, False),
        (CategoricalParameter(name="target", choices=("qv", "mlp")), "mlp", True),
    ],
)
def test_contains(parameter: Parameter, value: Scalar, inside: bool) -> None:
    assert contains(parameter, value) is inside
