"""A frozen linear layer under the rows of many adapters, with a hand-written backward pass.

For the rows of slot k with scale s and dropout mask m (already divided by 1 - p), x' = m * x:

    forward   y = x Wᵀ + b,  h = x' Aᵀ,  y += s h Bᵀ
    backward  g' = s g B,  dB += s gᵀ h,  dA += g'ᵀ x',  dx = g W,  dx += m * (g' A)

One product with W for all rows; the low-rank part on each slot's rows, only where the slot adapts the layer
(`automl.packed.loop`, or `automl.packed.batched` for the seats of a bank). dA and dB are added straight into the slots'
flat gradients; W gets none. Where nothing below needs a gradient, dx is not computed. Source: Hu et al. 2021, eq. 3.
Legend: N rows (of all slots), I, O features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.packed import batched, loop
from automl.packed.kernels import Kernel, KernelFactory
from automl.packed.seating import Pack, Seat, Seating


class PackedLinear:
    """Takes the place of the `forward` of one nn.Linear or Conv1D; the module stays where it is in the model.

    seating: who sits where; None for a layer that nobody adapts. is_narrow: it is given the first token of every row
    only (`automl.packed.narrow`). Products run in the type of the weight; the low-rank part of `automl.packed.loop` in
    float32, that of `automl.packed.batched` like the frozen product.
    """

    is_narrow = False

    def __init__(
        self,
        path: str,
        module: nn.Linear | Conv1D,
        seating: Seating | None,
        factory: KernelFactory,
    ) -> None:
        weight = module.weight.detach()
        self.path = path
        self.seating = seating
        self.kernel: Kernel = factory(weight.t() if isinstance(module, Conv1D) else weight, module.bias)
        self.dtype = weight.dtype
        self.anchor = torch.zeros((), device=weight.device, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, ..., I), or rows and tokens in one dimension; returns (..., O) in the type of the weight.

        Raises ValueError if these are not the rows of the batch and somebody adapts the layer.
        """
        seats = self._seats()
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        per_row = self._per_row(x) if seats else 0
        # Without the anchor autograd would skip the backward of the lowest adapted layer, whose x needs no gradient.
        y: Tensor = _Packed.apply(flat, self.anchor if seats else None, self, seats, per_row)  # type: ignore[no-untyped-call]
        # Shaped out here: models may change what a layer returns in place, but not a view that a Function made.
        return y.view(*x.shape[:-1], -1)

    def _seats(self) -> Pack | Sequence[Seat]:
        """Whose low-rank updates belong here; empty if nobody's do."""
        if self.seating is None:
            return ()
        if self.seating.pack is not None:
            return self.seating.pack if self.path in self.seating.pack.bank.stacks else ()
        return [seat for seat in self.seating.seats if self.path in seat.adapter.low_rank]

    def _per_row(self, x: Tensor) -> int:
        """Rows of the flattened x that belong to one row of the batch."""
        assert self.seating is not None
        rows = self.seating.rows
        if x.shape[0] % rows:
            raise ValueError(f"a layer got {x.shape[0]} rows of a batch of {rows}: the model mixes or splits rows")
        return x.shape[:-1].numel() // rows


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, layer: PackedLinear, seats: Pack | Sequence[Seat], per_row: int
    ) -> Tensor:
        ctx.layer, ctx.dtype, ctx.saved = layer, x.dtype, None
        with _own_types(x.device.type):
            own = x.to(layer.dtype)
            y = layer.kernel.forward(own)  # (N, O)
            if isinstance(seats, Pack):
                ctx.saved = batched.forward(seats, layer.path, own, y, per_row)
            elif seats:
                wide = y.float()
                ctx.saved = loop.forward(layer.path, seats, own.float(), wide, per_row, is_narrow=layer.is_narrow)
                y = wide.to(layer.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        layer, saved = ctx.layer, ctx.saved
        with _own_types(grads[0].device.type):
            g = grads[0].contiguous()  # (N, O)
            dx = layer.kernel.backward(g) if ctx.needs_input_grad[0] else None  # (N, I)
            if isinstance(saved, batched.Saved):
                batched.backward(saved, g, dx)
            elif saved is not None:
                dx = None if dx is None else dx.float()
                loop.backward(saved, g.float(), dx)
        return (None if dx is None else dx.to(ctx.dtype)), None, None, None, None


def _own_types(device: str) -> AbstractContextManager[object]:
    """No automatic casts inside the block: types are chosen here."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
