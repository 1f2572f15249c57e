"""Losses on a frozen output layer, some rows at a time, against torch's own cross-entropy of whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from automl.lora import Hyperparameters
from automl.models.activations import ROWS_AT_ONCE, activations
from automl.models.inventory import resolve_targets
from automl.packed.install import PackedBackbone
from automl.packed.kernels import OUTPUT_KERNELS, Plain, Rounded, works
from automl.packed.token_losses import token_losses
from automl.tasks.causal import target_losses
from tests.architectures import ARCHITECTURES, VOCABULARY

ROWS, INPUTS, OUTPUTS = 2 * ROWS_AT_ONCE + 3, 24, 40


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [name for name in OUTPUT_KERNELS if works(name)])
@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, ROWS])
def test_losses_and_gradients_are_those_of_whole_logits(name: str, rows: int) -> None:
    weight, bias, x = drawn(OUTPUTS, INPUTS, seed=1), drawn(OUTPUTS, seed=2), drawn(rows, INPUTS).requires_grad_()
    targets = torch.randint(OUTPUTS, (rows,), generator=torch.Generator().manual_seed(3))
    weights = drawn(rows, seed=4)  # of rows, as a loss of preferences has them

    wanted = functional.cross_entropy(functional.linear(x, weight, bias), targets, reduction="none")
    (gradient,) = torch.autograd.grad((weights * wanted).sum(), x)
    found = token_losses(OUTPUT_KERNELS[name](weight, bias), x, targets)
    (own,) = torch.autograd.grad((weights * found).sum(), x)

    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    within = 2e-2 if "bf16h" in name and name.startswith("onednn") else 1e-6
    assert (own - gradient).norm() <= within * gradient.norm()


def test_losses_are_finite_where_a_target_is_hopeless() -> None:
    weight, x = 200.0 * torch.eye(4), torch.eye(4)[:1]
    assert token_losses(Plain(weight, None), x, torch.tensor([2])).item() == pytest.approx(200.0)


def test_no_tensor_is_as_large_as_all_logits() -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                self.numbers = max(self.numbers, found.numel())
            return found

    kernel, x = Plain(drawn(4096, 8), None), drawn(ROWS, 8).requires_grad_()
    with Largest() as largest:
        torch.autograd.backward(token_losses(kernel, x, torch.zeros(ROWS, dtype=torch.long)).sum())
    assert largest.numbers == ROWS_AT_ONCE * 4096


def test_a_weight_at_hand_gives_nearly_the_same_gradient_and_is_let_go() -> None:
    weight, x = drawn(OUTPUTS, INPUTS, seed=1), drawn(ROWS, OUTPUTS)
    kernel = Rounded(weight, None)
    with kernel.at_hand():
        near = kernel.backward(x)
    exact = x @ weight
    assert 0 < (near - exact).norm() < 1e-2 * exact.norm()
    assert kernel._half is None


class Shifted(LlamaForCausalLM):
    """Adds numbers of its own to what its output says."""

    def forward(self, *, logits_to_keep: Any = 0, **inputs: Any) -> Any:
        found = super().forward(logits_to_keep=logits_to_keep, **inputs)
        found.logits = found.logits + torch.linspace(0.0, 1.0, VOCABULARY)
        return found


def model_of(name: str, settings: dict[str, Any]) -> Any:
    general = {**ARCHITECTURES["llama"].settings, **settings}
    if name == "shifted":
        return Shifted(LlamaConfig(**general)).requires_grad_(False).eval()
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **general))
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("name", "settings", "is_used"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}, True),
        ("gemma2", {"final_logit_softcapping": 5.0}, False),
        ("cohere", {"logit_scale": 0.5}, False),
        ("shifted", {}, False),
        ("bert", {"is_decoder": True}, False),  # its output is part of a head, which is trained
    ],
)
def test_a_model_that_changes_what_its_output_says_is_asked_for_logits(
    name: str, settings: dict[str, Any], is_used: bool
) -> None:
    model = model_of(name, settings)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6:] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    planned = activations(model, resolve_targets(model, "all-linear"), Hyperparameters(rank=2))
    with torch.no_grad():
        wanted = target_losses(model, batch)
        backbone = PackedBackbone(model, targets={}, precision="fp32", kernel="torch-fp32", recompute=False)
        with backbone.segmentation.alone(None):
            found = [target_losses(model, batch) for _ in range(2)]
    layer: Any = model.get_output_embeddings().forward
    assert getattr(layer, "gives_logits", False) is is_used
    assert planned.is_bare is is_used, "the plan for memory is of what is done"
    backbone.close()
    assert all(torch.allclose(each, wanted, rtol=1e-6) for each in found)
