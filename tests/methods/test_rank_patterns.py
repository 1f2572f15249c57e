"""A rank per module: in PEFT's model, in its counts, and after saving and loading, alpha / rank the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from automl.errors import TargetError
from automl.lora import Hyperparameters, lora_parameters, peft_patterns
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, head_parameters, resolve_targets
from tests.architectures import tiny_model

LORA = METHODS["lora"]


def planned(model: torch.nn.Module, *, use_rslora: bool = False) -> Hyperparameters:
    """All-linear at rank 3, but every second layer at another rank."""
    paths = [layer.path for layer in resolve_targets(model, "all-linear")]
    base = Hyperparameters(rank=3, alpha=4.5, target="all-linear", use_rslora=use_rslora)
    return base.with_ranks({path: 1 + number for number, path in enumerate(paths) if number % 2})


def layers_of(model: Any) -> dict[str, LoraLayer]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}


# peft 0.21 reads an attribute that transformers 5.23 has renamed; see automl.methods.lora.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_rslora", [False, True], ids=["plain", "rank-stabilised"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3"])
def test_every_module_has_its_rank_and_the_scaling_of_all(name: str, use_rslora: bool, tmp_path: Path) -> None:
    kind = "classification" if name == "bert" else "causal-lm"
    model = tiny_model(name, kind=kind)
    hyper = planned(model, use_rslora=use_rslora)
    layers = resolve_targets(model, "all-linear")
    expected = lora_parameters(layers, hyper.rank_of) + head_parameters(model)
    adapted = LORA.attach(model, hyper, [layer.path for layer in layers], head_modules(model), seed=3)
    assert adapted.get_nb_trainable_parameters()[0] == expected
    adapted.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_model(name, kind=kind), str(tmp_path))
    for peft_model in (adapted, loaded):
        found = layers_of(peft_model.get_base_model())
        assert {path: layer.r["default"] for path, layer in found.items()} == {
            layer.path: hyper.rank_of(layer.path) for layer in layers
        }
        assert all(layer.scaling["default"] == pytest.approx(hyper.scaling) for layer in found.values())


def test_a_higher_rank_starts_with_the_rows_of_a_lower_one() -> None:
    # Arms of a comparison then differ in what they can learn, and not in where they start.
    model = tiny_model("bert", kind="classification")
    path = resolve_targets(model, "qv")[0].path
    rows = []
    for rank in (2, 7):
        hyper = Hyperparameters(rank=4, target="qv").with_ranks({path: rank})
        adapted = LORA.attach(model, hyper, [layer.path for layer in resolve_targets(model, "qv")], ["classifier"], 3)
        rows.append(layers_of(adapted.get_base_model())[path].lora_A["default"].weight.detach().clone())
        model = LORA.detach(adapted)
    assert torch.equal(rows[0], rows[1][:2])


def test_alpha_follows_the_rank() -> None:
    hyper = Hyperparameters(rank=4, alpha=8.0).with_ranks({"a.b": 3, "a.c": 4})
    assert hyper.rank_pattern == (("a.b", 3),)  # the rank of all needs no entry
    assert peft_patterns(hyper) == ({r"^a\.b$": 3}, {r"^a\.b$": 6.0})
    stabilised = Hyperparameters(rank=4, alpha=8.0, use_rslora=True).with_ranks({"a.b": 16})
    assert stabilised.alpha_of("a.b") / math.sqrt(16) == stabilised.scaling == 4.0


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.b has rank 0"):
        Hyperparameters().with_ranks({"a.b": 0})


def test_a_pattern_for_a_layer_that_is_not_adapted_is_refused() -> None:
    model = tiny_model("bert", kind="classification")
    mlp = resolve_targets(model, "mlp")[0].path
    hyper = Hyperparameters(target="qv").with_ranks({mlp: 2})
    with pytest.raises(TargetError, match="is not a layer of target set 'qv'"):
        LORA.attach(model, hyper, [layer.path for layer in resolve_targets(model, "qv")], ["classifier"], 3)
