"""A frozen linear layer under the rows of many adapters, with a hand-written backward pass.

For the rows of slot k with scale s and dropout mask m (already divided by 1 - p), x' = m * x:

    forward   y = x Wᵀ + b,  h = x' Aᵀ,  y += s h Bᵀ
    backward  g' = s g B,  dB += s gᵀ h,  dA += g'ᵀ x',  dx = g W,  dx += m * (g' A)

One product with W for all rows; the low-rank part on each slot's rows, only where the slot adapts the layer
(`automl.packed.loop`, or `automl.packed.batched` where there is a bank). dA and dB are added straight into the slots'
flat gradients; W gets none. Where nothing below needs a gradient, dx is not computed. Source: Hu et al. 2021, eq. 3.
Legend: N rows (of all slots), I, O features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.packed import batched, loop
from automl.packed.bank import Bank
from automl.packed.kernels import Kernel, KernelFactory
from automl.packed.seating import Seat, Seating


class PackedLinear:
    """Takes the place of the `forward` of one nn.Linear or Conv1D; the module stays where it is in the model.

    seating: who sits where; None for a layer that nobody adapts and that is called for one slot at a time. bank: where
    the slots' matrices lie if they are to be multiplied together. is_narrow: it is given the first token of every row
    only (`automl.packed.narrow`).
    """

    is_narrow = False

    def __init__(
        self,
        path: str,
        module: nn.Linear | Conv1D,
        seating: Seating | None,
        factory: KernelFactory,
        bank: Bank | None = None,
    ) -> None:
        weight = module.weight.detach()
        self.path = path
        self.seating = seating
        self.kernel: Kernel = factory(weight.t() if isinstance(module, Conv1D) else weight, module.bias)
        self.bank = bank
        self.anchor = torch.zeros((), device=weight.device, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, ..., I) float32; returns (rows, ..., O) float32."""
        present = self.seating.seats_of(x.shape[0]) if self.seating else ()
        adapting = [seat for seat in present if self.path in seat.adapter.low_rank]
        seats = present if self.bank is not None and adapting else adapting
        # Without the anchor autograd would skip the backward of the lowest adapted layer, whose x needs no gradient.
        y: Tensor = _Packed.apply(x, self.anchor if seats else None, self, seats)  # type: ignore[no-untyped-call]
        return y


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: PackedLinear, seats: Sequence[Seat]) -> Tensor:
        ctx.layer, ctx.shape, ctx.saved = layer, x.shape, None
        per_row = x[0].numel() // x.shape[-1]
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        y = layer.kernel.forward(flat)  # (N, O)
        if seats and layer.bank is not None:
            ctx.saved = batched.forward(layer.bank, layer.path, seats, flat, y, per_row, is_narrow=layer.is_narrow)
        elif seats:
            ctx.saved = loop.forward(layer.path, seats, flat, y, per_row, is_narrow=layer.is_narrow)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        g = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()  # (N, O)
        dx = ctx.layer.kernel.backward(g) if ctx.needs_input_grad[0] else None  # (N, I)
        if isinstance(ctx.saved, batched.Saved):
            batched.backward(ctx.saved, g, dx)
        elif ctx.saved is not None:
            loop.backward(ctx.saved, g, dx)
        return (None if dx is None else dx.view(ctx.shape)), None, None, None
