"""Ranges by model size and the warnings about choices that waste trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automl.methods.lora import Lora
from automl.methods.registry import METHODS
from automl.space.assemble import assemble
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


@pytest.mark.parametrize(("methods", "name"), [(["lora"], "learning_rate"), (["lora", "ia3"], "learning_rate.lora")])
def test_preferences_are_learnt_at_a_tenth_of_the_rates(methods: list[str], name: str) -> None:
    text = HEAD.replace("classification", "preference").replace("accuracy", "loss")
    chosen = f"{{type: categorical, choices: [{', '.join(methods)}]}}"
    space = parse_space(text + f"space: {{method: {chosen}, learning_rate: auto}}\n", "s.yaml", Path("/there")).space
    (rate,) = (each for each in resolve(space, QWEN, 600).parameters if each.name == name)
    assert isinstance(rate, FloatParameter)
    assert (rate.low, rate.high) == (2e-6, 1e-4)
    assert advice(replace(space, auto=(), parameters=(replace(rate, name="learning_rate"),)), QWEN, 600) == []


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


def _rates(space: SearchSpace) -> list[FloatParameter]:
    found = [item for item in space.parameters if item.name.startswith("learning_rate")]
    return [item for item in found if isinstance(item, FloatParameter)]


METHODS_SPACE = "space:\n  method: {type: categorical, choices: [lora, adalora, full]}\n"


def test_methods_of_one_range_share_it_and_others_get_their_own() -> None:
    two = resolve(
        space_of("space:\n  method: {type: categorical, choices: [lora, adalora]}\n  learning_rate: auto\n"),
        MINILM,
        100,
    )
    assert [rate.name for rate in _rates(two)] == ["learning_rate"]
    three = _rates(resolve(space_of(f"{METHODS_SPACE}  learning_rate: auto\n"), MINILM, 100))
    assert {rate.name: (rate.high, rate.when.values if rate.when else ()) for rate in three} == {
        "learning_rate.lora": (2e-2, ("lora",)),
        "learning_rate.adalora": (2e-2, ("adalora",)),
        "learning_rate.full": (2e-3, ("full",)),
    }


def test_a_range_of_one_method_leaves_the_plain_name_to_the_others() -> None:
    text = (
        f"{METHODS_SPACE}  learning_rate: auto\n  learning_rate.full: {{type: float, low: 1e-5, high: 1e-3, log: true}}"
        "\nenqueue: [{method: full, learning_rate: 1e-4}, {method: lora, learning_rate: 5e-2}]\n"
    )
    space = resolve(space_of(text), MINILM, 100)
    assert {rate.name: (rate.low, rate.high, rate.when and rate.when.values) for rate in _rates(space)} == {
        "learning_rate": (1e-4, 5e-2, ("lora", "adalora")),
        "learning_rate.full": (1e-5, 1e-3, ("full",)),
    }
    assert space.enqueue[0] == {"method": "full", "learning_rate.full": 1e-4}
    assert assemble(space, space.enqueue[0]).learning_rate == 1e-4
    assert assemble(space, {"method": "lora", "learning_rate": 3e-3}).learning_rate == 3e-3


def test_a_constraint_on_the_rate_knows_the_rates_of_one_method() -> None:
    text = f"{METHODS_SPACE}  learning_rate.full: {{type: float, low: 1e-3, high: 1e-1, log: true}}\n"
    assert space_of(f"{text}constraints: ['learning_rate > 0.0005 or method != \"full\"']\n").constraints


def test_a_rate_that_is_enqueued_without_its_method_keeps_one_range() -> None:
    space = space_of(f"{METHODS_SPACE}  learning_rate: auto\nenqueue: [{{learning_rate: 1e-3}}]\n")
    assert [rate.name for rate in _rates(resolve(space, MINILM, 100))] == ["learning_rate"]


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
        found = {
            name: {rate.name: (rate.low, rate.high) for rate in _rates(resolve(space, 20_000_000, 100))}
            for name, space in spaces.items()
        }
        assert found == {
            "eager alone": {"learning_rate": (1e-3, 0.5)},
            "both": {"learning_rate.lora": (1e-4, 2e-2), "learning_rate.eager": (1e-3, 0.5)},
        }
        assert (
            advice(replace(spaces["eager alone"], fixed={"method": "eager", "learning_rate": 0.4}), 20_000_000, 100)
            == []
        )
    finally:
        del METHODS["eager"]
