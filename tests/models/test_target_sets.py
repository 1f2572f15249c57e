"""Named target sets in architectures that call their layers otherwise, held against what PEFT adapts."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from automl.errors import TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.attaching import adapted_layers
from automl.methods.lora import Lora
from automl.models.inventory import (
    head_modules,
    inspect_model,
    linear_layers,
    notes,
    resolvable_sets,
    resolve_targets,
)
from automl.space.defaults import TARGETS
from tests.architectures import ARCHITECTURES, FURTHER, further_model, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21


def kinds(layers: list[LinearShape]) -> set[str]:
    return {re.sub(r"\.\d+(?=\.)", ".*", layer.path) for layer in layers}


def ends_found(found: set[str], ends: tuple[str, ...]) -> set[str]:
    """The kinds that end so, once it is sure that every end is the end of one."""
    assert all(any(kind.endswith(end) for kind in found) for end in ends), (found, ends)
    return {kind for kind in found if kind.endswith(ends)} if ends else set()


seen_model = cache(further_model)
"""For tests that only look at it."""


def any_model(name: str) -> nn.Module:
    if name in FURTHER:
        return further_model(name)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(tiny_config(name))
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.parametrize("target", ["qv", "attention", "mlp"])
def test_a_set_asks_only_for_the_roles_it_names(name: str, target: str) -> None:
    model, ends = seen_model(name), getattr(FURTHER[name], target)
    if not ends:
        with pytest.raises(
            TargetError, match=f"'{target}' is not known for .*no linear layer is known as its"
        ) as found:
            resolve_targets(model, target)
        assert "\n" not in str(found.value)
        return
    found_kinds = kinds(resolve_targets(model, target))
    assert found_kinds == ends_found(found_kinds, ends)
    layers = {match[1] for kind in resolve_targets(model, target) if (match := re.search(r"\.(\d+)\.", kind.path))}
    assert layers == ({"0"} if name == "albert" else {"0", "1"})  # ALBERT's layers are one and the same


@pytest.mark.parametrize("name", FURTHER)
def test_all_linear_is_everything_that_can_be_adapted(name: str) -> None:
    model, expected = seen_model(name), FURTHER[name]
    named = {layer.path for target in resolvable_sets(model) for layer in resolve_targets(model, target)}
    every = {layer.path for layer in resolve_targets(model, "all-linear")}
    assert named == every
    ends = tuple({*expected.attention, *expected.mlp, *expected.also})
    found = kinds(resolve_targets(model, "all-linear"))
    assert found == ends_found(found, ends)
    assert not expected.frozen or not [kind for kind in found if kind.endswith(expected.frozen)]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *FURTHER])
def test_peft_adapts_exactly_the_layers_of_a_set(name: str) -> None:
    """The rules about what PEFT refuses or replaces are ours; here PEFT itself is asked."""
    model = any_model(name)
    modules = [layer.path for layer in resolve_targets(model, "all-linear")]
    Lora().attach(model, Hyperparameters(rank=2), modules, head_modules(model), seed=0)
    assert set(adapted_layers(model)) == set(modules)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")  # PEFT's own pattern
@pytest.mark.parametrize("name", [name for name, entry in FURTHER.items() if entry.frozen])
def test_what_peft_would_not_adapt_is_what_it_really_would_not(name: str) -> None:
    model = further_model(name)
    left = [layer.path for layer in linear_layers(model) if layer.path.endswith(FURTHER[name].frozen)]
    assert left
    with pytest.raises((TargetError, ValueError)):
        Lora().attach(model, Hyperparameters(rank=2), left, head_modules(model), seed=0)
    with pytest.raises(TargetError, match="is left out on purpose: PEFT"):
        resolve_targets(seen_model(name), "mine", {"mine": [left[0].rpartition(".")[2]]})


@pytest.mark.parametrize("name", FURTHER)
def test_what_no_set_reaches_is_said(name: str) -> None:
    model, expected = seen_model(name), FURTHER[name]
    lines = list(notes(model))
    assert lines == list(inspect_model(model).notes)
    assert any("left out of every target set, as PEFT" in line for line in lines) == bool(expected.frozen)
    assert any(re.search(r"\d+% of the model's parameters stay frozen", line) for line in lines) == expected.has_stacked


def test_the_share_of_frozen_experts_is_what_the_tensors_hold() -> None:
    model = seen_model("mixtral")
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    (line,) = notes(model)
    assert line.startswith("model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj: ")
    assert f" {experts / total:.0%} of the model's" in line
    with pytest.raises(TargetError, match=rf"'mlp' .*{experts / total:.0%} of the model's parameters stay frozen"):
        resolve_targets(model, "mlp")


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("llama", "lm_head", "'lm_head' is left out on purpose: the output over the vocabulary"),
        ("gpt2", r".*lm_head", "is left out on purpose: the output over the vocabulary"),
        ("llama", "embed_tokens", "'embed_tokens' is no linear layer of LlamaForCausalLM, but Embedding"),
        ("llama", "self_attn", "'self_attn' is no linear layer of LlamaForCausalLM, but LlamaAttention"),
        ("llama", "qq_proj", r"'qq_proj' matches no linear layer of .*\(did you mean 'q_proj'\?\)"),
    ],
)
def test_a_pattern_without_a_layer_says_why(name: str, pattern: str, message: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name))
    with pytest.raises(TargetError, match=message):
        resolve_targets(model, "mine", {"mine": [pattern]})


def test_fused_experts_named_as_a_target_are_no_linear_layer() -> None:
    with pytest.raises(TargetError, match=r"'experts.down_proj' is a tensor of Mixtral.* and no linear layer"):
        resolve_targets(seen_model("mixtral"), "mine", {"mine": ["experts.down_proj"]})


@pytest.mark.parametrize("name", FURTHER)
def test_only_sets_that_resolve_are_proposed(name: str) -> None:
    entry = FURTHER[name]
    having = {"all-linear": True, "qv": entry.qv, "attention": entry.attention, "mlp": entry.mlp}
    assert set(resolvable_sets(seen_model(name))) == {target for target in TARGETS if having[target]}
