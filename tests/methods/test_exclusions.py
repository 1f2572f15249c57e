"""What does not go together is refused in the file, or never chosen; what passes can be built: all pairs are tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from automl.errors import ConfigError, TargetError
from automl.lora import Hyperparameters
from automl.methods.eva import know_inputs
from automl.methods.registry import METHODS
from automl.methods.settings import Setting, Span, chosen
from automl.models.backbone import Kind, load_backbone, resolve_model
from automl.models.inventory import head_modules, linear_layers, resolve_targets
from automl.models.positions import positions
from automl.space.load import parse_space
from automl.space.spec import ModelSettings, Quantization, SweepSpec
from automl.space.write import scalar
from automl.tasks.virtual import call
from automl.trial import Scalar
from tests.training.training_cases import LABELS, write_backbone

HEAD = "version: 1\nstudy: s\ntask: {type: classification, data: a.csv}\n"
KINDS: dict[str, Kind] = {"bert": "classification", "llama": "causal-lm"}


def parsed(fixed: dict[str, Scalar], *, space: str = "{}", quantization: str = "none", run: str = "{}") -> SweepSpec:
    values = ", ".join(f"{name}: {scalar(value)}" for name, value in fixed.items())
    model = f"{{hub: org/name, quantization: {quantization}}}"
    return parse_space(f"{HEAD}model: {model}\nspace: {space}\nfixed: {{{values}}}\nrun: {run}\n", "s.yaml", Path.cwd())


def problems(**given: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(**given)
    return [f"{problem.key}: {problem.message}" for problem in caught.value.problems]


def test_settings_that_exclude_each_other_are_a_problem_of_the_file() -> None:
    said = "exclude each other, DoRA scales the whole weight, of which init takes a part; remove one of them"
    both = {"use_dora": True, "init": "pissa"}
    assert problems(fixed=both) == [f"fixed.init: olora or pissa and use_dora true {said}"]
    init = "{init: {type: categorical, choices: [default, pissa]}}"
    assert problems(fixed={"use_dora": True}, space=init) == [f"space.init: olora or pissa and use_dora true {said}"]
    parsed({"use_dora": True, "init": "orthogonal"})
    parsed({"use_dora": True}, space="{init: {type: categorical, choices: [default, gaussian]}}")


# One of them alone may be right; where both are searched, only what they exclude is left out.
def test_what_is_searched_on_both_sides_is_never_chosen_together() -> None:
    spec = parsed({}, space="{init: auto, use_dora: auto}")
    (constraint,) = spec.space.constraints
    assert constraint.expression == "not (use_dora in [True] and init in ['olora', 'pissa'])"
    assert constraint.violation({"use_dora": True, "init": "pissa"}) > 0
    assert constraint.violation({"use_dora": True, "init": "gaussian"}) <= 0
    assert constraint.violation({"use_dora": False, "init": "pissa"}) <= 0
    assert parsed({}, space="{init: auto}").space.constraints == ()
    several = "{method: {type: categorical, choices: [lora, ia3]}, init: auto, use_dora: auto}"
    (constraint,) = parsed({}, space=several).space.constraints
    assert constraint.violation({"method": "ia3", "use_dora": True, "init": "pissa"}) <= 0


# Studies that were begun before such constraints were known go on.
def test_a_study_is_known_by_what_its_file_says() -> None:
    plain = parsed({}, space="{init: auto, use_dora: auto}")
    assert plain.sha256 == "1912f1526350c974b2b4e6aa5742de02f39908f529aa21d02f81b10bcd270c8b"


def test_tuners_that_peft_has_for_quantised_layers_are_known() -> None:
    (said,) = problems(fixed={"method": "peft:loha"}, quantization="nf4")
    assert said.startswith("fixed.method: 'peft:loha' needs")
    parsed({"method": "peft:vera"}, quantization="nf4")


@cache
def is_valid(method: str, own: tuple[tuple[str, Scalar], ...], quantization: str) -> bool:
    try:
        parsed({"method": method, **dict(own)}, quantization=quantization)
    except ConfigError:
        return False
    return True


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], nn.Module]:
    """A frozen model by architecture and quantisation."""

    @cache
    def load(architecture: str, way: str) -> nn.Module:
        folder = tmp_path_factory.mktemp(architecture)
        write_backbone(folder / "model", architecture, kind=KINDS[architecture])
        held = None if way == "none" else Quantization(kind=way)  # type: ignore[arg-type]
        place = ModelSettings(kind="folder", location=str(folder / "model"), quantization=held)
        labels = LABELS if KINDS[architecture] == "classification" else ()
        model = load_backbone(resolve_model(place, folder / "cache"), KINDS[architecture], labels)
        know_inputs(
            model, lambda count: {each.path: torch.eye(count, each.in_features) for each in linear_layers(model)}
        )
        return model.requires_grad_(False).eval()

    return load


FITTING = {"peft:oft": {"oft_block_size": 4}, "peft:miss": {"r": 4}, "peft:road": {"group_size": 4}}
"""Fields that suit layers of 32 features."""


def worth_trying(setting: Setting) -> tuple[Scalar, ...]:
    tried = (setting.tried.low, setting.tried.high) if isinstance(setting.tried, Span) else setting.tried
    return tuple(dict.fromkeys(setting.typed(value) for value in (setting.default, *tried, *setting.choices)))


def pairs(method: str) -> Iterator[dict[str, Scalar]]:
    """Every two settings with every two values of them."""
    settings = METHODS[method].settings
    yield {}
    yield from ({setting.name: value} for setting in settings[:1] for value in worth_trying(setting))
    for first, second in itertools.combinations(settings, 2):
        for one, other in itertools.product(worth_trying(first), worth_trying(second)):
            yield {first.name: one, second.name: other}


TOKENS = 6


def fits(model: nn.Module, given: Mapping[str, Scalar]) -> bool:
    """Whether the model has positions for a row behind so many virtual tokens."""
    found = positions(model.config.to_dict())  # type: ignore[operator, union-attr]
    return found is None or not found.is_hard or int(given.get("virtual_tokens", 20)) + TOKENS <= found.tokens


TUNERS = ("vera", "oft", "boft", "miss", "hira", "randlora", "road", "loha")
EVERY = [*METHODS.built_in, *(f"peft:{name}" for name in TUNERS)]
QUICK = [("lora", "none", "bert"), ("lora", "nf4", "bert"), ("ia3", "nf4", "llama"), ("peft:vera", "nf4", "llama")]
ALL = [each for each in itertools.product(EVERY, ("none", "nf4", "int8"), KINDS) if each not in QUICK]


@pytest.mark.parametrize(
    ("method", "quantization", "architecture"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.full) for each in ALL)],
)
def test_what_passes_validation_can_be_built(
    model_of: Callable[[str, str], nn.Module], method: str, quantization: str, architecture: str
) -> None:
    """And what does not pass could not be, unless it is for what the model has."""
    model = model_of(architecture, quantization)
    layers = resolve_targets(model, "all-linear")
    for own in pairs(method) if ":" not in method else [{}]:
        fields = {f"{method[5:]}.{field}": value for field, value in FITTING.get(method, {}).items()}
        given = {**own, **fields}
        if not fits(model, given):
            continue  # which is seen when the model's configuration is
        hyper = Hyperparameters(method=method, rank=4, own=chosen(METHODS[method].settings, given))
        passes = is_valid(method, tuple(given.items()), quantization)
        try:
            METHODS[method].trainable(model_of(architecture, "none"), layers, hyper)
            paths, heads = [layer.path for layer in layers], head_modules(model)
            trial = METHODS[method].attach(model, hyper, paths, heads, 1, steps=10)
        except TargetError as error:
            reason = str(error)
            assert not passes or type(model).__name__ in reason, (own, reason)
            continue
        if passes:
            ids = torch.arange(3, 15).view(2, TOKENS)
            found = call(trial, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            assert torch.isfinite(found).all(), own
        METHODS[method].detach(trial)
