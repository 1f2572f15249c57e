"""Ranges by model size and the warnings about choices that waste trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automl.methods.lora import Lora
from automl.methods.registry import METHODS
from automl.space.defaults import advice, auto_names, resolve, suggested_ranges
from automl.space.limits import Names
from automl.space.load import parse_space
from automl.space.points import contains
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSpace

HEAD = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: a.csv}\n"
MINILM, GEMMA, QWEN = 22_700_000, 1_000_000_000, 7_600_000_000


def space_of(rest: str = "") -> SearchSpace:
    return parse_space(HEAD + rest, "s.yaml", Path("/there")).space


@pytest.mark.parametrize(
    ("model_parameters", "steps", "low", "high"),
    [(MINILM, 120, 1e-4, 2e-2), (MINILM, 3000, 5e-5, 1e-2), (GEMMA, 120, 1e-5, 2e-3), (QWEN, 600, 2e-5, 1e-3)],
)
def test_learning_rates_follow_the_size(model_parameters: int, steps: int, low: float, high: float) -> None:
    rate = suggested_ranges(model_parameters, steps)["learning_rate"]
    assert rate == FloatParameter(name="learning_rate", low=low, high=high, log=True)


@pytest.mark.parametrize("model_parameters", [MINILM, GEMMA, QWEN])
def test_suggestions_cover_every_automatic_name_within_bounds(model_parameters: int) -> None:
    ranges = suggested_ranges(model_parameters, 100)
    assert list(ranges) == auto_names(Names(["lora"]))
    for name, parameter in ranges.items():
        values = parameter.choices if isinstance(parameter, CategoricalParameter) else (parameter.low, parameter.high)
        assert [Names(["lora"]).checked(name, value) for value in values] == list(values)


def test_resolve_fills_in_ranges_and_keeps_the_order_of_conditions() -> None:
    space = space_of(
        "space:\n  rank: auto\n  learning_rate: auto\n  target: {type: categorical, choices: [qv, mlp]}\n"
        "  dropout: {type: categorical, choices: [0, 0.1], when: {target: mlp}}\n"
    )
    resolved = resolve(space, MINILM, 100)
    assert [parameter.name for parameter in resolved.parameters] == ["rank", "target", "learning_rate", "dropout"]
    assert resolved.auto == ()
    assert resolve(resolved, QWEN, 100) == resolved


def test_an_enqueued_value_is_always_inside() -> None:
    space = space_of("space: auto\nenqueue: [{rank: 256, learning_rate: 1e-6, dropout: 0.2}, {rank: 1}]")
    ranges = {parameter.name: parameter for parameter in resolve(space, MINILM, 100).parameters}
    for entry in space.enqueue:
        for name, value in entry.items():
            assert contains(ranges[name], value)
    assert isinstance(ranges["rank"], IntParameter)
    assert (ranges["rank"].low, ranges["rank"].high) == (1, 256)


@pytest.mark.parametrize(
    ("rest", "model_parameters", "steps", "expected"),
    [
        (
            "space: {learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}}",
            MINILM,
            120,
            ["learning_rate: the range ends at 0.001, perhaps below the best rate; 0.0001 to 0.02 suits a model"],
        ),
        (
            "space: {learning_rate: {type: float, low: 1e-4, high: 2e-2, log: true}}",
            QWEN,
            600,
            ["learning_rate: the range ends at 0.02, where trials may diverge; 2e-05 to 0.001 suits a model"],
        ),
        ("fixed: {learning_rate: 2e-5}", MINILM, 120, ["learning_rate: fixed at 2e-05; 0.0001 to 0.02 suits"]),
        ("space: {rank: auto}", MINILM, 12, ["steps: 12 teach little"]),
        (
            "space: {rank: {type: int, low: 2, high: 64}, alpha: {type: int, low: 4, high: 128}}",
            MINILM,
            120,
            ["alpha: searched beside rank over a wide range"],
        ),
        (
            "space: {learning_rate: {type: float, low: 1e-4, high: 2e-2}}",
            MINILM,
            120,
            ["learning_rate: without log: true nearly all trials"],
        ),
        ("", MINILM, 120, []),
    ],
)
def test_advice(rest: str, model_parameters: int, steps: int, expected: list[str]) -> None:
    notes = advice(resolve(space_of(rest), model_parameters, steps), model_parameters, steps)
    assert len(notes) == len(expected)
    for note, start in zip(notes, expected, strict=True):
        assert note.startswith(start)


class Eager(Lora):
    """Wants higher rates than LoRA."""

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        return 1e-3, 0.5


def test_a_method_says_which_learning_rates_suit_it() -> None:
    METHODS["eager"] = Eager()
    try:
        both = CategoricalParameter(name="method", choices=("lora", "eager"))
        spaces = {
            "eager alone": SearchSpace(parameters=(), fixed={"method": "eager"}, auto=("learning_rate",)),
            "both": SearchSpace(parameters=(both,), auto=("learning_rate",)),
        }
        rates = {
            name: next(item for item in resolve(space, 20_000_000, 100).parameters if item.name == "learning_rate")
            for name, space in spaces.items()
        }
        found = {name: (rate.low, rate.high) for name, rate in rates.items() if isinstance(rate, FloatParameter)}
        assert found == {"eager alone": (1e-3, 0.5), "both": (1e-4, 0.5)}
        assert (
            advice(replace(spaces["eager alone"], fixed={"method": "eager", "learning_rate": 0.4}), 20_000_000, 100)
            == []
        )
    finally:
        del METHODS["eager"]
