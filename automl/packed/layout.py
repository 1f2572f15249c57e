"""Where each trainable tensor of an adapter lies in its flat vector, under the name PEFT gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from automl.lora import LinearShape

ALIGNMENT = 16
"""Every tensor starts at a multiple of this many floats (64 bytes): kernels may depend on where a matrix lies."""

_PREFIX = "base_model.model."


class TensorSlice(NamedTuple):
    """A tensor in a flat vector: its shape, and where it starts (in elements)."""

    shape: tuple[int, ...]
    start: int

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


class VectorLayout:
    """Places of named tensors, one after the other. The gaps that alignment leaves are zero and stay zero."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.places: dict[str, TensorSlice] = {}
        self.size = 0
        for name, shape in shapes.items():
            self.places[name] = place = TensorSlice(shape, self.size)
            self.size += -(-place.elements // ALIGNMENT) * ALIGNMENT

    @property
    def parameters(self) -> int:
        """Trainable parameters: all elements without the gaps."""
        return sum(place.elements for place in self.places.values())

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The named tensors inside `flat`, which has `size` elements; writing to them writes to it."""
        return {
            name: flat[place.start : place.start + place.elements].view(place.shape)
            for name, place in self.places.items()
        }


def a_name(path: str) -> str:
    """PEFT's name for the matrix A of the linear layer at `path`, (rank, in)."""
    return f"{_PREFIX}{path}.lora_A.default.weight"


def b_name(path: str) -> str:
    """PEFT's name for the matrix B of the linear layer at `path`, (out, rank)."""
    return f"{_PREFIX}{path}.lora_B.default.weight"


def head_name(head: str, parameter: str) -> str:
    """PEFT's name for a parameter of a module that is trained in full."""
    return f"{_PREFIX}{head}.modules_to_save.default.{parameter}"


def adapter_layout(
    layers: Sequence[LinearShape],
    rank: int | Callable[[str], int],
    heads: Mapping[str, nn.Module],
    *,
    is_a_trained: bool = True,
) -> VectorLayout:
    """What is trained: A and B of every layer in module order, then the heads.

    rank: rows of A and columns of B, or a function of the layer's path; one above the adapter's own is padding.
    """
    shapes = dict(_low_rank_shapes(layers, rank if callable(rank) else lambda path: rank))
    if not is_a_trained:
        shapes = {b: shapes[b] for b in (b_name(layer.path) for layer in layers)}
    for head, module in heads.items():
        shapes |= {head_name(head, name): tuple(tensor.shape) for name, tensor in module.named_parameters()}
    return VectorLayout(shapes)


def file_name(parameter: str) -> str:
    """The name under which PEFT stores a parameter in adapter_model.safetensors: without the adapter's own name."""
    return parameter.replace(".modules_to_save.default.", ".").replace(".default.weight", ".weight")


def _low_rank_shapes(
    layers: Sequence[LinearShape], rank_of: Callable[[str], int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for layer in layers:
        rank = rank_of(layer.path)
        yield a_name(layer.path), (rank, layer.in_features)
        yield b_name(layer.path), (layer.out_features, rank)
