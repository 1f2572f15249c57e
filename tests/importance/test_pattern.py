"""A suggested pattern in plain PEFT: exactly its parameters, the same scaling everywhere, also after save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from automl.importance.pattern import patterned, peft_block, snippet
from automl.lora import Hyperparameters, lora_parameters
from automl.models.inventory import head_modules, head_parameters, resolve_targets
from tests.architectures import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def suggested(model: nn.Module, *, use_rslora: bool) -> tuple[Hyperparameters, dict[str, int], dict[str, Any]]:
    layers = resolve_targets(model, "all-linear")
    ranks = {layer.path: 1 + (7 * index) % 5 for index, layer in enumerate(layers)}
    hyper = patterned(Hyperparameters(rank=4, alpha=6.0, use_rslora=use_rslora), ranks)
    return hyper, ranks, peft_block(hyper, list(ranks))


def check(model: Any, ranks: dict[str, int], scaling: float, parameters: int) -> None:
    base = model.get_base_model()
    adapted = {path: layer for path, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    assert {path: layer.r["default"] for path, layer in adapted.items()} == ranks
    assert {path: layer.scaling["default"] for path, layer in adapted.items()} == pytest.approx(
        dict.fromkeys(ranks, scaling)
    )
    low_rank = sum(tensor.numel() for name, tensor in model.named_parameters() if "lora_" in name)
    assert low_rank == parameters


@pytest.mark.parametrize("use_rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_plain_peft_does_exactly_what_the_block_says(architecture: str, use_rslora: bool, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    layers = resolve_targets(model, "all-linear")
    hyper, ranks, block = suggested(model, use_rslora=use_rslora)
    assert hyper.scaling == pytest.approx(6.0 / (4**0.5 if use_rslora else 4))
    if architecture == "gpt2":
        block = {**block, "fan_in_fan_out": True}
    parameters = lora_parameters(layers, ranks.__getitem__)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **block))
    check(adapted, ranks, hyper.scaling, parameters)
    assert adapted.get_nb_trainable_parameters()[0] == parameters + head_parameters(tiny_model(architecture))
    adapted.save_pretrained(tmp_path / "adapter")
    check(PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "adapter"), ranks, hyper.scaling, parameters)
    assert head_modules(tiny_model(architecture))


def test_keys_are_anchored_and_escaped() -> None:
    model = tiny_model("bert")
    _, ranks, block = suggested(model, use_rslora=False)
    assert set(block["rank_pattern"]) == set(block["alpha_pattern"])
    assert all(key.startswith("^") and key.endswith("$") and "\\." in key for key in block["rank_pattern"])
    assert block["target_modules"] == list(ranks)


def test_the_most_common_rank_is_the_default_and_needs_no_entry() -> None:
    hyper = patterned(Hyperparameters(rank=8, alpha=16.0), {"a.x": 2, "a.y": 5, "a.z": 2, "a.w": 7})
    assert (hyper.rank, hyper.alpha) == (2, 4.0)
    assert hyper.ranks == {"a.y": 5, "a.w": 7}
    assert peft_block(hyper, ["a.x"])["alpha_pattern"] == {r"^a\.w$": 14, r"^a\.y$": 10}


def test_even_ranks_need_no_pattern() -> None:
    block = peft_block(patterned(Hyperparameters(), {"a": 3, "b": 3}), ["a", "b"])
    assert (block["r"], block["lora_alpha"], block["rank_pattern"], block["alpha_pattern"]) == (3, 6, {}, {})


def test_the_peft_snippet_is_the_configuration() -> None:
    _, ranks, block = suggested(tiny_model("bert"), use_rslora=False)
    names: dict[str, Any] = {}
    exec(snippet(block, "peft", "SEQ_CLS"), names)
    config = names["config"]
    assert isinstance(config, LoraConfig)
    assert (config.r, config.rank_pattern, config.alpha_pattern) == (
        block["r"],
        block["rank_pattern"],
        block["alpha_pattern"],
    )
    assert config.target_modules == set(ranks)


def test_the_ludwig_snippet_is_yaml_with_both_patterns() -> None:
    _, _, block = suggested(tiny_model("bert"), use_rslora=False)
    adapter = yaml.safe_load(snippet(block, "ludwig", "CAUSAL_LM"))["adapter"]
    assert adapter["type"] == "lora"
    assert (adapter["r"], adapter["alpha"]) == (block["r"], block["lora_alpha"])
    assert (adapter["rank_pattern"], adapter["alpha_pattern"]) == (block["rank_pattern"], block["alpha_pattern"])


def test_the_axolotl_snippet_starts_from_an_adapter_with_the_pattern() -> None:
    _, ranks, block = suggested(tiny_model("bert"), use_rslora=False)
    section = yaml.safe_load(snippet(block, "axolotl", "CAUSAL_LM"))
    assert section["adapter"] == "lora"
    assert section["lora_model_dir"] == "./suggested-adapter"
    assert section["lora_target_modules"] == list(ranks)
    assert "rank_pattern" not in section  # Axolotl does not know it
