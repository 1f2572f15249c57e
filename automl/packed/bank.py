"""All slots of a pack in four matrices, every slot padded to the same rank and the same layers.

For the batched kernel (`automl.packed.batched`): the slots' matrices of one layer lie at equal distances, so that one
batched product serves them all, and a slot is replaced by writing into its row. What is beyond a slot's own rank or
layers is zero, gets exactly zero gradient and moments, and so stays zero under AdamW, weight decay included.
Legend: K slots, P padded parameters of a slot, R largest rank, I, O features of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl.errors import OutOfMemory
from automl.lora import LinearShape
from automl.packed.layout import Layout, a_name, adapter_layout, b_name


class Storage(NamedTuple):
    """Where an adapter lives: a layout and four vectors of its size. row: of the bank, -1 outside of one."""

    layout: Layout
    params: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    row: int = -1


class Stack(NamedTuple):
    """The matrices of all slots for one layer. a: (K, R, I), b: (K, O, R), and their gradients."""

    a: Tensor
    b: Tensor
    a_grad: Tensor
    b_grad: Tensor


class Bank:
    """Room for `slots` adapters of at most `rank` on any of `layers`."""

    def __init__(
        self,
        layers: Sequence[LinearShape],
        heads: Mapping[str, nn.Module],
        *,
        slots: int,
        rank: int,
        device: torch.device,
    ) -> None:
        self.rank = rank
        self._layout = adapter_layout(layers, rank, heads)
        shape = (slots, self._layout.size)
        self._params, self._grads, self._exp_avg, self._exp_avg_sq = (
            torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(4)
        )
        self.stacks = {layer.path: self._stack(layer) for layer in layers}
        self._free = list(range(slots - 1, -1, -1))

    def take(self, rank: int) -> Storage:
        """A row of zeros. Raises OutOfMemory if none is free, ValueError if the rank is above the bank's."""
        if rank > self.rank:
            raise ValueError(f"rank {rank} is above the {self.rank} that the bank was built for")
        if not self._free:
            raise OutOfMemory(f"all {len(self._params)} slots of the bank are taken")
        row = self._free.pop()
        params, grads, exp_avg, exp_avg_sq = (
            matrix[row].zero_() for matrix in (self._params, self._grads, self._exp_avg, self._exp_avg_sq)
        )
        return Storage(self._layout, params, grads, exp_avg, exp_avg_sq, row)

    def give_back(self, storage: Storage) -> None:
        """Free the row; what it holds stays until it is taken again."""
        self._free.append(storage.row)

    def _stack(self, layer: LinearShape) -> Stack:
        return Stack(
            *(self._all(matrix, name(layer.path)) for matrix in (self._params, self._grads) for name in _NAMES)
        )

    def _all(self, matrix: Tensor, name: str) -> Tensor:
        place = self._layout.places[name]
        return matrix[:, place.start : place.start + place.elements].view(-1, *place.shape)


_NAMES = (a_name, b_name)


def own_storage(layout: Layout, device: torch.device) -> Storage:
    """Vectors for one adapter alone, without padding."""
    # Not rows of one tensor: autograd would take writing a gradient for a change of the parameters it has saved.
    params, grads, exp_avg, exp_avg_sq = (
        torch.zeros(layout.size, dtype=torch.float32, device=device) for _ in range(4)
    )
    return Storage(layout, params, grads, exp_avg, exp_avg_sq)
