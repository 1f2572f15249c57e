"""Gradient checkpointing changes no number, and bfloat16 for whole models stays near float32."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from automl.packed.bank import BankSize
from automl.packed.body import View
from automl.packed.recompute import Recomputation, recomputable
from automl.packed.segments import Segment, Segmentation
from automl.packed.trainer import PackedTrainer
from automl.training.state import TrainState
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

ROOM = BankSize(slots=2, rank=16, targets=("qv", "all-linear"))
TRIALS = [
    spec(0, rank=4, target="qv", dropout=0.2, batch_size=4, learning_rate=3e-3),
    spec(1, rank=16, dropout=0.1, batch_size=4, learning_rate=3e-3),
]


def states(name: str, kind: str, steps: int = 4, **options: Any) -> list[TrainState]:
    model = tiny_model(name, kind=kind)
    if options.get("precision") == "bf16":
        model = model.to(torch.bfloat16)
    trainer = PackedTrainer(model, workload(kind), **options)
    for trial in TRIALS:
        trainer.admit(trial)
    for _ in range(steps):
        assert trainer.round(list(trainer.members.values())) == []
    found = [trainer.snapshot(trial.number) for trial in TRIALS]
    trainer.close()
    assert "forward" not in vars(model.base_model)
    return found


@pytest.mark.parametrize("bank", [None, ROOM], ids=["loop", "bank"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "classification")],
)
def test_computing_activations_again_changes_no_bit(name: str, kind: str, bank: BankSize | None) -> None:
    plain, again = (states(name, kind, bank=bank, recompute=recompute) for recompute in (False, True))
    for one, other in zip(plain, again, strict=True):
        assert all(torch.equal(one.params[key], other.params[key]) for key in one.params)
        assert all(torch.equal(one.moments[key], other.moments[key]) for key in one.moments)
        assert one.dropout is not None
        assert other.dropout is not None
        assert torch.equal(one.dropout, other.dropout)


def test_layers_that_share_an_input_add_up_its_gradient_in_another_order() -> None:
    plain, again = (states("t5", "classification", recompute=recompute) for recompute in (False, True))
    for one, other in zip(plain, again, strict=True):
        # T5's encoder output goes into every decoder layer.
        assert all(torch.allclose(one.params[key], other.params[key], atol=1e-6) for key in one.params)


def test_activations_are_not_kept() -> None:
    kept = {recompute: saved_bytes(recompute) for recompute in (False, True)}
    assert kept[True] < kept[False] / 2


def saved_bytes(recompute: bool) -> int:
    """Bytes that autograd keeps of one forward pass; what packed layers keep for themselves comes on top."""
    trainer = PackedTrainer(tiny_model("bert"), workload(), recompute=recompute)
    trainer.admit(TRIALS[0])
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    counting = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    member = trainer.members[0]
    rows = member.upcoming(torch.device("cpu"))
    with counting, trainer.backbone.segmentation.divided([Segment(member.adapter, 0, rows.rows, rows.longest)]):
        trainer.model(**{name: tensor for name, tensor in rows.batch.items() if name != "labels"})
    return total


def test_every_tested_architecture_can_recompute() -> None:
    for name in ("bert", "roberta", "distilbert", "modernbert", "gpt2", "gpt-neox", "llama", "gemma3", "phi3", "t5"):
        assert recomputable(tiny_model(name)), name


@pytest.mark.parametrize("bank", [None, ROOM], ids=["loop", "bank"])
@pytest.mark.parametrize(("name", "kind"), [("bert", "classification"), ("llama", "causal-lm")])
def test_bf16_stays_near_fp32_and_keeps_adapters_in_float32(name: str, kind: str, bank: BankSize | None) -> None:
    exact, half = (states(name, kind, 10, bank=bank, precision=precision) for precision in ("fp32", "bf16"))
    for one, other in zip(exact, half, strict=True):
        assert all(tensor.dtype == torch.float32 for tensor in other.params.values())
        norm, apart = (
            torch.cat([(tensor - base).flatten() for tensor, base in pairs]).norm()
            for pairs in (
                [(one.params[key], torch.zeros(())) for key in one.params],
                [(one.params[key], other.params[key]) for key in one.params],
            )
        )
        assert 0 < apart < 0.1 * norm


class Remembering(GradientCheckpointingLayer):
    """A layer that adds what it is given to a cache, which it is handed under one of many names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor, **caches: DynamicCache | None) -> torch.Tensor:
        for cache in caches.values():
            if cache is not None:
                cache.update(x, x, 0)
        return x * self.weight


@pytest.mark.parametrize("name", ["past_key_values", "past_key_value", "layer_past", "cache", "kept"])
def test_a_cache_grows_where_text_is_generated_and_nowhere_else(name: str) -> None:
    # transformers calls it past_key_values up to 5.23, cache from 5.24 on, and architectures differ.
    layer, cache = Remembering(), DynamicCache()
    recomputation = Recomputation([layer], Segmentation())

    with torch.no_grad():
        layer(torch.ones(1, 2, 3, 4), **{name: cache})
    assert cache.get_seq_length() == 3
    layer(torch.ones(1, 2, 3, 4), **{name: cache}).sum().backward()
    assert cache.get_seq_length() == 3
    recomputation.close()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("is_renamed", [False, True], ids=["as it is called", "past_key_values"])
def test_text_is_generated_as_without_checkpointing(name: str, is_renamed: bool) -> None:
    model: Any = tiny_model(name, kind="causal-lm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0)  # or the same token follows whatever was said
    prompts = {"input_ids": torch.arange(3, 9)[None], "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
    options = {"do_sample": False, "min_new_tokens": 6, "max_new_tokens": 6}
    plain = model.generate(**prompts, **options)
    inside = [layer for layer in recomputable(model.base_model) if is_renamed]
    for layer in inside:
        layer.forward = renamed(layer.forward, "past_key_values", own_cache_name(layer))

    trainer = PackedTrainer(model, workload("causal-lm"), recompute=True)
    for layer in inside:
        layer.forward = renamed(layer.forward, own_cache_name(layer), "past_key_values")
    with torch.no_grad():
        found = View(model, {}).generate(**prompts, **options)

    assert torch.equal(found, plain)
    trainer.close()


def own_cache_name(layer: nn.Module) -> str:
    """How this version of transformers calls the cache of the layer."""
    names = inspect.signature(type(layer).forward).parameters
    return next(name for name in ("cache", "past_key_values", "layer_past") if name in names)


def renamed(forward: Callable[..., Any], outside: str, inside: str) -> Callable[..., Any]:
    """The same with another name for one of its arguments."""
    return lambda *args, **kwargs: forward(
        *args, **{inside if name == outside else name: value for name, value in kwargs.items()}
    )
