"""A method's own hyperparameters: declared once, read from a space file, recorded where they are not the default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml

from automl.errors import ConfigError
from automl.lora import Hyperparameters
from automl.methods.base import LOW_RANK
from automl.methods.lora import Lora
from automl.methods.registry import METHODS
from automl.methods.settings import Setting, Span, chosen
from automl.packed.build import obstacle
from automl.space.assemble import active_parameters, assemble, constraint_values
from automl.space.defaults import resolve
from automl.space.extremes import corners, names_of, own_values
from automl.space.load import json_schema, parse_space
from automl.space.satisfiable import is_hopeless
from automl.space.spec import IntParameter, SearchSpace, When
from automl.space.template import commented_space
from automl.training.state import identity
from automl.trial import TrialSpec
from tests.architectures import tiny_model

WIDTH = Setting(
    name="width",
    default=16,
    meaning="units",
    low=1,
    high=512,
    tried=Span(8, 64, log=True),
    searched=True,
    sized=True,
)
SHAPE = Setting(name="shape", default="round", meaning="of the units", choices=("round", "square"), packable=("round",))
SCALE = Setting(name="scale", default=1.0, meaning="of the output", low=0.0, tried=(0.5, 1.0))


class Wide(Lora):
    settings: ClassVar[tuple[Setting, ...]] = (WIDTH, SHAPE, SCALE)
    takes: ClassVar[frozenset[str]] = LOW_RANK - {"rank", "alpha", "alpha_ratio", "use_rslora"}

    def trainable(self, model: Any, layers: Any, hyper: Hyperparameters) -> int:
        return 1000 * int(WIDTH.of(hyper))


HEAD = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: a.csv}\n"
BOTH = "method: {type: categorical, choices: [lora, wide]}"


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    METHODS["wide"] = Wide()
    yield
    del METHODS["wide"]


def space_of(rest: str) -> SearchSpace:
    return parse_space(HEAD + rest, "s.yaml", Path("/there")).space


def test_what_is_at_its_default_is_not_recorded() -> None:
    """The digests are those of the version before there were settings."""
    hyper = Hyperparameters(method="adalora", rank=4, alpha=8.0, dropout=0.1, use_rslora=True).with_ranks({"a.b": 2})
    spec = TrialSpec(number=3, params={}, hyper=hyper, seed=5, data_seed=7, steps=20, evaluate_every=10)

    def digest(spec: TrialSpec) -> str:
        found = identity(spec, backbone="b", data="d", precision="fp32", targets={"own": ("x",)})
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    recorded = "427c90a0a9e807ff82caecd0056dd6302d75632f3f75267bff1682989e92b472"
    assert digest(spec) == recorded
    usual = chosen(Wide.settings, {"width": 16, "scale": 1, "shape": "round"})
    assert digest(replace(spec, hyper=replace(hyper, own=usual))) == recorded
    other = chosen(Wide.settings, {"width": 17})
    assert digest(replace(spec, hyper=replace(hyper, own=other))) != recorded
    assert replace(hyper, own=other).as_dict() == {**hyper.as_dict(), "width": 17}


def test_a_setting_is_active_with_its_method_only() -> None:
    space = space_of(
        f"space: {{{BOTH}, rank: {{type: int, low: 2, high: 4}}, width: {{type: int, low: 2, high: 9}}, scale: auto}}"
    )
    space = resolve(space, 10, 10)
    assert [item.name for item in active_parameters(space, {"method": "lora"})] == ["method", "rank"]
    assert [item.name for item in active_parameters(space, {"method": "wide"})] == ["method", "width", "scale"]
    hyper = assemble(space, {"method": "wide", "width": 4, "scale": 1.0})
    assert (hyper.own, WIDTH.of(hyper), SHAPE.of(hyper)) == ((("width", 4),), 4, "round")
    assert assemble(space, {"method": "lora", "rank": 3}).own == ()


def test_a_value_of_another_method_does_not_reach_a_trial() -> None:
    space = space_of(f"space: {{{BOTH}}}\nfixed: {{width: 7, scale: 2}}")
    assert assemble(space, {"method": "wide"}).own == (("scale", 2.0), ("width", 7))
    assert assemble(space, {"method": "lora"}).own == ()


def test_when_works_for_settings_as_for_others() -> None:
    width = "width: {type: int, low: 2, high: 9, when: {shape: square}}"
    space = space_of(
        f"fixed: {{method: wide}}\nspace: {{shape: {{type: categorical, choices: [round, square]}}, {width}}}"
    )
    assert [item.name for item in active_parameters(space, {"shape": "round"})] == ["shape"]
    (found,) = [item for item in space.parameters if item.name == "width"]
    assert found == IntParameter(name="width", low=2, high=9, when=When(parameter="shape", values=("square",)))


def test_what_a_method_searches_is_searched_if_nothing_is_said() -> None:
    space = space_of("fixed: {method: wide}")
    assert space.auto == ("dropout", "target", "learning_rate", "width")
    assert IntParameter(name="width", low=8, high=64, log=True) in resolve(space, 10, 10).parameters
    assert space_of("").auto == ("rank", "alpha_ratio", "dropout", "target", "learning_rate")


def test_constraints_read_settings_and_what_they_make() -> None:
    space = space_of(f"space: {{{BOTH}, width: auto}}\nconstraints: [width <= 10 or method == 'lora']")
    space = resolve(space, 10, 10)
    for params, kept in (({"method": "wide", "width": 16}, False), ({"method": "lora"}, True)):
        values = constraint_values(space, params, assemble(space, params), {"trainable_params": 1.0})
        assert set(values) == set(names_of(space).kinds)
        assert (space.constraints[0].violation(values) <= 0) is kept
    sized = resolve(
        space_of("fixed: {method: wide}\nspace: {width: auto}\nconstraints: [trainable_params < 8000]"), 1, 1
    )
    derive = {hyper.own: 1000.0 * int(WIDTH.of(hyper)) for hyper in corners(sized)}
    assert is_hopeless(
        sized.constraints, sized, derive=lambda hyper: {"trainable_params": 1000.0 * int(WIDTH.of(hyper))}
    )
    assert sorted(derive.values()) == [8000.0, 64_000.0]


def test_corners_are_those_of_each_method() -> None:
    space = space_of(f"space: {{{BOTH}, rank: {{type: int, low: 2, high: 4}}, width: {{type: int, low: 2, high: 9}}}}")
    found = [(hyper.method, hyper.rank, WIDTH.of(hyper)) for hyper in corners(space)]
    assert found == [("lora", 2, 16), ("lora", 4, 16), ("wide", 8, 2), ("wide", 8, 9)]


def test_what_cannot_be_packed_is_said() -> None:
    space = space_of(f"space: {{{BOTH}, shape: {{type: categorical, choices: [round, square]}}}}")
    model = tiny_model("bert")
    assert obstacle(model, ["lora", "wide"], own_values(space)) == "shape square cannot be packed"
    assert obstacle(model, ["lora", "wide"], own_values(space_of(f"space: {{{BOTH}}}"))) == ""


MISTAKES = {
    "value": ("fixed: {method: wide, width: 0}", "5:30: fixed.width: 0 is below 1, the least allowed"),
    "choice": (
        "fixed: {method: wide, shape: oval}",
        "5:30: fixed.shape: 'oval' is not known; known: round, square",
    ),
    "kind": ("fixed: {method: wide, width: 1.5}", "5:30: fixed.width: 1.5 is not a whole number"),
    "range": (
        "fixed: {method: wide}\nspace: {width: {type: float, low: 1, high: 4}}",
        "6:23: space.width.type: 'float' does not suit width, a whole number; write type: int",
    ),
    "range of texts": (
        "fixed: {method: wide}\nspace: {shape: {type: int, low: 1, high: 4}}",
        "6:23: space.shape.type: 'int' does not suit shape; write {type: categorical, choices: [...]}",
    ),
    "end of a range": (
        "fixed: {method: wide}\nspace: {width: {type: int, low: 1, high: 513}}",
        "6:42: space.width.high: 513 is above 512, the most allowed",
    ),
    "no automatic range": (
        "fixed: {method: wide}\nspace: {shape: auto}",
        "6:16: space.shape: shape has no automatic range; auto is known for rank, alpha_ratio, dropout, target,"
        " learning_rate, weight_decay, batch_size, warmup, schedule, use_rslora, neftune_alpha, width, scale,"
        " class_weights",
    ),
    "of another method": ("fixed: {width: 8}", "5:9: fixed.width: is of method wide; this space chooses lora"),
    "enqueued, of another method": (
        "enqueue: [{width: 8}]",
        "5:12: enqueue[0].width: is of method wide; this space chooses lora",
    ),
    "enqueued with another method": (
        f"space: {{{BOTH}, width: {{type: int, low: 2, high: 9}}}}\nenqueue: [{{method: lora, width: 6}}]",
        "6:26: enqueue[0].width: is active only when method is 'wide'; remove it here",
    ),
    "not used": ("fixed: {method: wide, rank: 8}", "5:23: fixed.rank: is not used by method wide; remove it"),
    "several processes": (
        "fixed: {method: wide, width: 16, scale: 2}\nrun: {shards: 2}",
        "5:41: fixed.scale: 2.0 is not known with shards: 2",
    ),
    "constraint": (
        "constraints: [width > 3]",
        "5:15: constraints[0]: unknown name 'width'; known: method, rank, alpha, alpha_ratio, dropout, target,"
        " learning_rate, weight_decay, batch_size, warmup, schedule, clip, use_rslora, neftune_alpha, trainable_params,"
        " lora_plus_ratio, use_dora, freeze_a, init, class_weights",
    ),
}


@pytest.mark.parametrize(("body", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(body: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        space_of(body)
    assert str(error.value) == f"s.yaml:{said}"


def test_two_methods_may_not_mean_different_things_by_one_name() -> None:
    class Other(Wide):
        settings: ClassVar[tuple[Setting, ...]] = (replace(WIDTH, high=64),)

    METHODS["other"] = Other()
    try:
        with pytest.raises(ConfigError, match="methods wide and other mean different things by 'width'"):
            space_of("space: {method: {type: categorical, choices: [wide, other]}}")
        assert space_of("fixed: {method: other, width: 60}").fixed["width"] == 60
    finally:
        del METHODS["other"]


@pytest.mark.parametrize("name", ["rank", "alpha_ratio", "max_length", "own"])
def test_a_name_that_is_everybodys_is_refused(name: str) -> None:
    admit = METHODS._admit
    with pytest.raises(ValueError, match=f"setting '{name}' is there already"):
        admit(type("Bad", (Lora,), {"settings": (Setting(name=name, default=1, meaning=""),)}))


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"default": 0, "low": 1}, "0 is outside its own bounds"),
        ({"default": 1, "tried": Span(1, 9), "high": 8}, "9 is outside its own bounds"),
        ({"default": "a", "choices": ("b",)}, "'a' is outside its own bounds"),
        ({"default": True, "tried": (1,)}, "1 is outside its own bounds"),
        ({"default": True, "packable": (False,)}, "the default True has to be packable"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(declared: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Setting(name="x", meaning="", **declared)


@pytest.mark.parametrize("methods", [["wide"], ["lora", "wide"]], ids=", ".join)
@pytest.mark.parametrize("parameters", [None, 22_700_000])
def test_a_new_file_names_the_methods_and_what_they_bring(methods: list[str], parameters: int | None) -> None:
    text = commented_space("s", "m", "a.csv", "classification", parameters, methods=methods)
    spec = parse_space(text, "s.yaml", Path("/there"))
    assert names_of(spec.space).methods == tuple(methods)
    searched = {item.name for item in resolve(spec.space, 10, 10).parameters}
    assert "width" in searched
    assert ("rank" in searched) == ("lora" in methods)
    assert "  # scale: auto  # of the output" in text.splitlines()
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))
    assert "method" not in commented_space("s", "m", "a.csv", "classification", parameters)


def test_the_schema_knows_settings() -> None:
    checker = jsonschema.Draft202012Validator(json_schema())
    document = yaml.safe_load(f"{HEAD}fixed: {{method: wide, width: 8}}\nspace: {{scale: auto}}")
    checker.validate(document)
    for wrong in ({"width": 0}, {"width": "a"}, {"shape": "oval"}, {"widht": 8}):
        assert not checker.is_valid({**document, "fixed": wrong})
