"""The memory estimate against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets, trainable_parameters
from automl.models.memory import ROWS, TOKENS, estimate_bytes, method_costs
from tests.architectures import ARCHITECTURES, VOCABULARY, tiny_model


def kept_bytes(model: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).loss
    assert loss.requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_kept_is_known_within_a_tenth(name: str, dropout: float) -> None:
    model = tiny_model(name)
    estimate = estimate_bytes(model, Hyperparameters(rank=3, dropout=dropout), tokens=4 * 32, length=32)
    peft_model = METHODS["lora"].attach(
        model,
        Hyperparameters(rank=3, dropout=dropout),
        modules=[layer.path for layer in resolve_targets(model, "all-linear")],
        head=head_modules(model),
        seed=1,
    )
    ids = torch.randint(3, VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 1
    kept = kept_bytes(
        peft_model.train(),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 0])},
    )

    within = 0.15 if name.startswith("t5") else 0.1  # at 32 features what attention's positions keep counts for more
    assert estimate.activations == pytest.approx(kept, rel=within)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bound_is_above_what_is_counted(name: str, dtype: str) -> None:
    model, hyper = tiny_model(name), Hyperparameters(dropout=0.1)
    counted, most = (estimate_bytes(model, hyper, tokens=256, dtype=dtype, is_bound=each) for each in (False, True))
    assert counted.step <= most.step
    assert counted.adapter == most.adapter


def test_the_parts_scale_as_they_should() -> None:
    model = tiny_model("llama", kind="causal-lm")
    one = estimate_bytes(model, Hyperparameters(target="qv", rank=4), tokens=64)
    two = estimate_bytes(model, Hyperparameters(target="qv", rank=8), tokens=128, dtype="bf16")

    assert one.adapter == 16 * trainable_parameters(model, "qv", 4)
    assert two.backbone * 2 == one.backbone
    assert two.adapter == 2 * one.adapter
    assert one.total == one.backbone + one.adapter + one.activations + one.logits + one.working


def test_every_method_has_its_cost_or_the_reason_why_it_cannot_be() -> None:
    model = tiny_model("bert", kind="classification")
    found = {each.method: each for each in method_costs(model)}
    assert found.keys() == METHODS.keys()
    head = sum(
        parameter.numel() for path in head_modules(model) for parameter in model.get_submodule(path).parameters()
    )
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert found["full"].trainable_params == whole
    assert found["prompt"].trainable_params == 20 * model.config.hidden_size + head
    lora = Hyperparameters()
    layers = resolve_targets(model, lora.target)
    assert found["lora"].trainable_params == sum(8 * (each.in_features + each.out_features) for each in layers) + head
    assert found["lora"].memory == estimate_bytes(model, lora, tokens=ROWS * TOKENS, rows=ROWS).total
    assert "Llama" in found["llama-pro"].refused
    assert found["llama-pro"].trainable_params == 0
