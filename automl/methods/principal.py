"""LoRA that starts from the frozen weight itself: PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024).

A and B begin as a low-rank part of the weight, and the frozen weight as what is left of it. The backbone is shared, so
it is not changed: the part is taken away from a layer's output instead, W x - s B0 A0 x + s B A x, which is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from automl.errors import CheckpointError, TargetError
from automl.methods.attaching import ADAPTER

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


def start_from_weight(layer: Any, how: str) -> None:
    """Let A and B of PEFT's layer begin as a part of its weight, and take that away from its output."""
    a, b, scaling = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER])
    weight = layer.get_base_layer().weight.detach()
    whole = (weight.mT if layer.fan_in_fan_out else weight).float()
    with torch.no_grad():
        part = _pissa(whole, len(a), scaling) if how == "pissa" else _olora(whole, len(a))
        for tensor, value in zip((a, b), part, strict=True):
            tensor.zero_()
            tensor[tuple(slice(size) for size in value.shape)] = value
    _take_away(layer, Part(a.detach().clone(), b.detach().clone(), scaling))


def parts_of(layers: Mapping[str, Any]) -> dict[str, Part]:
    """The parts that were taken away, by path; empty if the adapter began as nothing."""
    return {path: getattr(layer, _PART) for path, layer in layers.items() if hasattr(layer, _PART)}


def memory_of(layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parts as copies on the CPU: made anew elsewhere, they could differ in the last bit."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in _tensors(layers).items()}


def put_back(layers: Mapping[str, Any], memory: Mapping[str, Tensor]) -> None:
    """What `memory_of` returned. Raises CheckpointError if it is not of this adapter."""
    own = _tensors(layers)
    odd = sorted(own.keys() ^ memory.keys()) or [name for name in own if own[name].shape != memory[name].shape]
    if odd:
        raise CheckpointError(f"{odd[0]} is not of this adapter; the slot file is of another trial")
    for name, tensor in memory.items():
        own[name].copy_(tensor)


def as_plain_lora(
    layers: Mapping[str, Any], saved: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of the plain LoRA of twice the rank that does the same on the unchanged weight.

    saved: by PEFT's names in files. config: PEFT's, as JSON.
    """
    tensors = dict(saved)
    for path, part in parts_of(layers).items():
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


def _tensors(layers: Mapping[str, Any]) -> dict[str, Tensor]:
    parts = parts_of(layers).items()
    return {f"a/{path}": part.a for path, part in parts} | {f"b/{path}": part.b for path, part in parts}


def _take_away(layer: nn.Module, part: Part) -> None:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(part.a.dtype)
        taken = functional.linear(functional.linear(x, part.a), part.b)
        return output - (part.scaling * taken).to(output.dtype)

    setattr(layer, _PART, part)
    layer.register_forward_hook(hook)


def _pissa(weight: Tensor, rank: int, scaling: float) -> Iterator[Tensor]:
    """The largest singular values, shared out by their roots. Source: Meng et al. 2024, eq. 2 and 3."""
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    roots = (values[:rank] / scaling).sqrt()
    yield roots.unsqueeze(1) * v[:rank]
    yield u[:, :rank] * roots


def _olora(weight: Tensor, rank: int) -> Iterator[Tensor]:
    q, r = torch.linalg.qr(weight)
    yield r[:rank]
    yield q[:, :rank]
