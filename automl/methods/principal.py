"""LoRA that starts from the frozen weight itself: PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024).

A and B begin as a low-rank part of the weight, and the frozen weight as what is left of it. The backbone is shared, so
it is not changed: the part is taken away from a layer's output instead, W x - s B0 A0 x + s B A x, which is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from automl.errors import CheckpointError, TargetError

_PART = "automl_part"


class Part(NamedTuple):
    """The part of a weight that a layer's adapter began with: scaling * b @ a. a: (rank, in), b: (out, rank)."""

    a: Tensor
    b: Tensor
    scaling: float


def check_whole(model: nn.Module, modules: Sequence[str], how: str) -> None:
    """Raise TargetError if weights of these modules are held in fewer bits than can be taken apart."""
    if not all(model.get_submodule(path).weight.is_floating_point() for path in modules):  # type: ignore[operator]
        raise TargetError(f"init {how} takes weights apart, which are quantised here; use another init")


class Directions(NamedTuple):
    """First directions of a weight: left (out, n), right (n, in), and what they weigh, (n,); None is nothing."""

    left: Tensor
    right: Tensor
    values: Tensor | None

    def part(self, rank: int, scaling: float) -> Part:
        """What an adapter of this rank begins with; there is nothing beyond the weight's own directions.

        What they weigh is shared out to both sides by its root. Source: Meng et al. 2024, eq. 2 and 3.
        """
        left, right = self.left[:, :rank], self.right[:rank]
        if self.values is not None:
            roots = (self.values[:rank] / scaling).sqrt()
            left, right = left * roots, roots.unsqueeze(1) * right
        missing = rank - len(right)
        return Part(functional.pad(right, (0, 0, 0, missing)), functional.pad(left, (0, missing)), scaling)

    def first(self, count: int) -> Directions:
        """The first `count` of them, in memory of their own."""
        values = None if self.values is None else self.values[:count].clone()
        return Directions(self.left[:, :count].clone(), self.right[:count].clone(), values)


def directions(module: nn.Module, how: str) -> Directions:
    """All directions of a linear layer's weight: by singular values for pissa, by its QR decomposition for olora."""
    weight: Any = module.weight
    whole = (weight.mT if isinstance(module, Conv1D) else weight).detach().float()
    if how == "pissa":
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        return Directions(left, right, values)
    left, right = torch.linalg.qr(whole)
    return Directions(left, right, None)


def start_from_weight(layer: Any, how: str) -> None:
    """Let A and B of PEFT's layer begin as a part of its weight, and take that away from its output."""
    from automl.methods.attaching import ADAPTER  # PEFT takes seconds to import

    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    part = directions(layer.get_base_layer(), how).part(len(a), float(layer.scaling[ADAPTER]))
    with torch.no_grad():
        a.copy_(part.a)
        b.copy_(part.b)
    _take_away(layer, Part(a.detach().clone(), b.detach().clone(), part.scaling))


def parts_of(layers: Mapping[str, Any]) -> dict[str, Part]:
    """The parts that were taken away, by path; empty if the adapter began as nothing."""
    return {path: getattr(layer, _PART) for path, layer in layers.items() if hasattr(layer, _PART)}


def kept_names(parts: Mapping[str, Part], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of these parts, and an A by path that is constant too, by the names under which they are kept."""
    return (
        {f"a/{path}": part.a for path, part in parts.items()}
        | {f"b/{path}": part.b for path, part in parts.items()}
        | {f"a/{path}": a for path, a in frozen.items()}
    )


def memory_of(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU of what `kept_names` returned: made anew elsewhere, it could differ in the last bit."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in own.items()}


def put_back(own: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> None:
    """What `memory_of` returned. Raises CheckpointError if it is not of this adapter."""
    odd = sorted(own.keys() ^ memory.keys()) or [name for name in own if own[name].shape != memory[name].shape]
    if odd:
        raise CheckpointError(f"{odd[0]} is not of this adapter; the slot file is of another trial")
    for name, tensor in memory.items():
        own[name].copy_(tensor)


def as_plain_lora(
    parts: Mapping[str, Part], saved: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and configuration of the plain LoRA of twice the rank that does the same on the unchanged weight.

    saved: by PEFT's names in files. config: PEFT's, as JSON. Both as they are if the adapter began as nothing.
    """
    if not parts:
        return saved, config
    tensors = dict(saved)
    for path, part in parts.items():
        a, b = (f"base_model.model.{path}.lora_{name}.weight" for name in "AB")
        tensors[a] = torch.cat([saved[a], part.a.to(saved[a])])
        tensors[b] = torch.cat([saved[b], -part.b.to(saved[b])], dim=1)
    more = math.sqrt(2.0) if config.get("use_rslora") else 2.0
    patterns = {
        "rank_pattern": {key: 2 * rank for key, rank in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {key: more * alpha for key, alpha in (config.get("alpha_pattern") or {}).items()},
    }
    whole = {"r": 2 * config["r"], "lora_alpha": more * config["lora_alpha"], "init_lora_weights": True}
    return tensors, {**config, **whole, **patterns}


def _take_away(layer: nn.Module, part: Part) -> None:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(part.a.dtype)
        taken = functional.linear(functional.linear(x, part.a), part.b)
        return output - (part.scaling * taken).to(output.dtype)

    setattr(layer, _PART, part)
    layer.register_forward_hook(hook)
