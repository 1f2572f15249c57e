"""What PEFT's layers hold and keep, whatever the tuner; and their random numbers, which follow from a trial's seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from automl.lora import LinearShape
from automl.methods.base import Footprint
from automl.methods.seeding import SeededDropout, stream

_TOKENS = (1, 2)


def adapted_paths(model: nn.Module) -> set[str]:
    """Paths of the layers that a tuner has taken the place of. model: the backbone, not PEFT's model."""
    return {path for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def without_numbers(model: nn.Module) -> nn.Module:
    """A copy of the model with shapes and types only."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(model, memo)


def footprint_of(peft_model: Any, layers: Sequence[LinearShape]) -> Footprint:
    """Trained parameters of an adapted model of shapes without a head, and what its layers keep.

    One layer of each shape is run on one token and on two, which tells what it keeps for each token from what it keeps
    once.
    """
    base = peft_model.get_base_model()
    alike = {layer[1:]: base.get_submodule(layer.path) for layer in layers}
    kept = {shape: [_kept(layer, shape[0], tokens) for tokens in _TOKENS] for shape, layer in alike.items()}
    once, twice = (sum(kept[layer[1:]][number] for layer in layers) for number in range(len(_TOKENS)))
    trained = sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)
    return Footprint(trained, twice - once, per_pass=max(0, 2 * once - twice))


def _kept(layer: nn.Module, features: int, tokens: int) -> int:
    """Float32 numbers that a layer keeps for the backward pass of so many tokens, without parameters and buffers."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes() // 4
        return tensor

    own = {each.untyped_storage()._cdata for each in (*layer.parameters(), *layer.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.train()
        output = layer(torch.empty(1, tokens, features, device="meta").requires_grad_())
    del output
    return sum(size for storage, size in kept.items() if storage not in own)


@contextmanager
def seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """Inside the block torch's global generators begin at a stream of the trial; afterwards they are as they were.

    device: where the model is, whose generator is one of them beside that of the CPU.
    """
    start = stream(seed, name).initial_seed()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(start)
        for each in devices:
            torch.cuda.default_generators[each.index or 0].manual_seed(start)
        yield


def seed_dropout(model: nn.Module, seed: int, device: torch.device) -> None:
    """Let all dropout masks of the adapter come from one generator of the trial, if it has any."""
    generator = stream(seed, "dropout", device)
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        inside = layer.get_base_layer()
        frozen = set(inside.modules())
        for path, module in list(layer.named_modules()):
            if isinstance(module, nn.Dropout) and module.p > 0.0 and module not in frozen:
                layer.set_submodule(path, SeededDropout(module.p, generator))
