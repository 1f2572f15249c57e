"""Target sets on the real module tree of every architecture."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError
from automl.lora import TARGET_SETS, LinearShape
from automl.models.inventory import (
    head_modules,
    head_parameters,
    inspect_model,
    linear_layers,
    resolve_targets,
    trainable_parameters,
)
from tests.architectures import ARCHITECTURES, DECODERS, tiny_config, tiny_model


def meta_model(name: str, auto: type = AutoModelForSequenceClassification) -> nn.Module:
    with torch.device("meta"):
        model = auto.from_config(tiny_config(name))
    assert isinstance(model, nn.Module)
    return model


def kinds(layers: list[LinearShape]) -> set[str]:
    return {re.sub(r"\.\d+(?=\.)", ".*", layer.path) for layer in layers}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_named_sets_are_the_layers_of_the_table(name: str) -> None:
    model, expected = meta_model(name), ARCHITECTURES[name]

    assert kinds(resolve_targets(model, "qv")) == set(expected.qv)
    assert kinds(resolve_targets(model, "attention")) == set(expected.attention)
    assert kinds(resolve_targets(model, "mlp")) == set(expected.mlp)
    assert kinds(resolve_targets(model, "all-linear")) == {*expected.attention, *expected.mlp}
    assert head_modules(model) == list(expected.head)


@pytest.mark.parametrize("name", DECODERS)
def test_a_text_model_has_the_same_layers_and_no_head(name: str) -> None:
    model, expected = meta_model(name, AutoModelForCausalLM), ARCHITECTURES[name]

    assert kinds(resolve_targets(model, "all-linear")) == {*expected.attention, *expected.mlp}
    assert head_modules(model) == []
    assert head_parameters(model) == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", TARGET_SETS)
def test_both_layers_are_found_in_module_order(name: str, target: str) -> None:
    model = meta_model(name)
    order = [path for path, _ in model.named_modules()]
    paths = [layer.path for layer in resolve_targets(model, target)]

    assert paths == sorted(paths, key=order.index)
    assert {match[1] for path in paths if (match := re.search(r"\.(\d+)\.", path))} == {"0", "1"}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", TARGET_SETS)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
def test_trainable_parameters_are_those_peft_counts(name: str, target: str) -> None:
    counted = trainable_parameters(meta_model(name), target, rank=3)
    model = tiny_model(name)
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=3,
            task_type=TaskType.FEATURE_EXTRACTION,
            target_modules=[layer.path for layer in resolve_targets(model, target)],
            modules_to_save=list(ARCHITECTURES[name].head),
            fan_in_fan_out=name == "gpt2",
        ),
    )

    assert counted == peft_model.get_nb_trainable_parameters()[0]


def test_conv1d_shapes_are_in_and_out_not_its_storage() -> None:
    shapes = {layer.path.rpartition(".h.0.")[2]: layer[1:] for layer in linear_layers(meta_model("gpt2"))}

    assert shapes["attn.c_attn"] == (32, 96)
    assert shapes["mlp.c_fc"] == (32, 128)
    assert shapes["mlp.c_proj"] == (128, 32)


def test_grouped_query_attention_has_narrow_keys_and_values() -> None:
    shapes = {layer.path: layer[1:] for layer in linear_layers(meta_model("llama"))}

    assert shapes["model.layers.0.self_attn.q_proj"] == (32, 32)
    assert shapes["model.layers.0.self_attn.v_proj"] == (32, 16)


def test_a_bare_backbone_has_no_head_and_no_pooler_in_its_sets() -> None:
    model = meta_model("bert", AutoModel)

    assert head_modules(model) == []
    assert len(resolve_targets(model, "all-linear")) == 2 * 6
    assert "pooler.dense" in {layer.path for layer in linear_layers(model)}


class TestPatterns:
    def test_a_plain_name_matches_the_end_of_a_path_at_a_dot(self) -> None:
        model = meta_model("llama")
        own = {"queries": ["q_proj"], "short": ["proj"], "dotted": ["self_attn.q_proj", "up_proj"]}

        assert kinds(resolve_targets(model, "queries", own)) == {"model.layers.*.self_attn.q_proj"}
        assert kinds(resolve_targets(model, "dotted", own)) == {
            "model.layers.*.self_attn.q_proj",
            "model.layers.*.mlp.up_proj",
        }
        with pytest.raises(TargetError, match=r"'proj' matches no linear layer"):
            resolve_targets(model, "short", own)

    def test_a_regular_expression_matches_the_whole_path(self) -> None:
        model = meta_model("llama")
        own = {"last": [r"model\.layers\.1\..*"], "inside": [r"layers\.1\..*"]}

        assert len(resolve_targets(model, "last", own)) == 7
        with pytest.raises(TargetError, match="matches no linear layer"):
            resolve_targets(model, "inside", own)

    def test_the_pooler_can_be_named_but_heads_cannot(self) -> None:
        model = meta_model("bert")

        assert resolve_targets(model, "mine", {"mine": ["pooler.dense"]}) == [LinearShape("bert.pooler.dense", 32, 32)]
        with pytest.raises(TargetError, match="'classifier' is left out on purpose: it is part of the head"):
            resolve_targets(model, "mine", {"mine": ["classifier"]})
        with pytest.raises(TargetError, match="'lm_head' is left out on purpose"):
            resolve_targets(meta_model("llama", AutoModelForCausalLM), "mine", {"mine": ["lm_head"]})

    @pytest.mark.parametrize(
        ("patterns", "message"),
        [
            (["q_proj", "qproj"], r"targets\.mine: 'qproj' matches no .*q_proj.*\(did you mean 'q_proj'\?\)$"),
            (["(q_proj"], r"'\(q_proj' is not a regular expression"),
            (["x" * 201], r"pattern of 201 characters; at most 200"),
            ([], "has no patterns"),
        ],
        ids=["typo", "broken", "long", "none"],
    )
    def test_bad_patterns_are_one_clear_line(self, patterns: list[str], message: str) -> None:
        with pytest.raises(TargetError, match=message) as caught:
            resolve_targets(meta_model("llama"), "mine", {"mine": patterns})
        assert "\n" not in str(caught.value)


class Unheard(nn.Module):
    """A network that no row of the table describes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"mixer": nn.Linear(4, 4), "side": Conv1D(6, 4)}) for _ in range(3))


def test_an_unknown_architecture_lists_its_kinds_of_layers_once() -> None:
    with pytest.raises(TargetError) as caught:
        resolve_targets(Unheard(), "qv")

    assert "not known for Unheard" in str(caught.value)
    assert "blocks.*.mixer, blocks.*.side" in str(caught.value)
    assert len(resolve_targets(Unheard(), "all-linear")) == 6


def test_an_unknown_set_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"'qvv'; known: qv, .*, mine \(did you mean 'qv'\?\)"):
        resolve_targets(meta_model("bert"), "qvv", {"mine": ["query"]})


def test_nothing_to_adapt_is_an_error() -> None:
    with pytest.raises(TargetError, match="has no linear layers"):
        resolve_targets(nn.Sequential(nn.Embedding(3, 4)), "all-linear")


def test_inspect_groups_layers_and_counts_each_set() -> None:
    model = meta_model("bert")
    report = inspect_model(model, {"first": [r".*layer\.0\..*query"]}, ranks=(2, 4))

    by_kind = {layer.kind: layer for layer in report.layers if "first" not in layer.sets}
    assert by_kind["bert.encoder.layer.*.output.dense"].sets == ("mlp", "all-linear")
    assert by_kind["bert.encoder.layer.*.output.dense"].count == 2
    assert by_kind["bert.encoder.layer.*.attention.self.query"].count == 1  # the other one is also in `first`
    assert by_kind["bert.pooler.dense"].sets == ()
    assert report.trainable["first"] == {2: 2 * 64 + report.head_parameters, 4: 4 * 64 + report.head_parameters}
    assert report.trainable["qv"][4] == trainable_parameters(model, "qv", 4)
    assert report.head == ("classifier",)
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_inspect_says_why_a_set_is_missing() -> None:
    report = inspect_model(Unheard())

    assert set(report.trainable) == {"all-linear"}
    assert "not known for Unheard" in report.unresolved["qv"]
