"""A frozen linear layer under the rows of many adapters, with a hand-written backward pass.

For the rows of slot k with scale s and dropout mask m (already divided by 1 - p), x' = m * x:

    forward   y = x Wᵀ + b,  h = x' Aᵀ,  y += s h Bᵀ
    backward  g' = s g B,  dB += s gᵀ h,  dA += g'ᵀ x',  dx = g W,  dx += m * (g' A)

One product with W for all rows; the low-rank part for each slot on its own rows, only where the slot adapts the layer.
dA and dB are added straight into the slot's flat gradient; W gets none. Where nothing below needs a gradient, dx is not
computed. Source: Hu et al. 2021, eq. 3. Legend: N rows (of all slots), M rows of one slot, I, O features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.packed.adapter import Adapter, LowRank
from automl.packed.kernels import Kernel, KernelFactory
from automl.packed.seating import Seat, Seating


class PackedLinear:
    """Takes the place of the `forward` of one nn.Linear or Conv1D; the module stays where it is in the model.

    seating: who sits where; None for a layer that nobody adapts and that is called for one slot at a time.
    """

    def __init__(self, path: str, module: nn.Linear | Conv1D, seating: Seating | None, factory: KernelFactory) -> None:
        weight = module.weight.detach()
        self.path = path
        self.seating = seating
        self.kernel: Kernel = factory(weight.t() if isinstance(module, Conv1D) else weight, module.bias)
        self.anchor = torch.zeros((), device=weight.device, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, ..., I) float32; returns (rows, ..., O) float32."""
        present = self.seating.seats_of(x.shape[0]) if self.seating else ()
        seats = [seat for seat in present if self.path in seat.adapter.low_rank]
        # Without the anchor autograd would skip the backward of the lowest adapted layer, whose x needs no gradient.
        y: Tensor = _Packed.apply(x, self.anchor if seats else None, self, seats)  # type: ignore[no-untyped-call]
        return y


class _Branch(NamedTuple):
    """What the backward pass needs of one slot: its rows, x' (M, I), h (M, R), the mask (M, I) or None."""

    rows: slice
    low_rank: LowRank
    scaling: float
    x: Tensor
    h: Tensor
    mask: Tensor | None


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: PackedLinear, seats: Sequence[Seat]) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        per_row = x[0].numel() // x.shape[-1]
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        y = layer.kernel.forward(flat)  # (N, O)
        ctx.branches = [_forward(layer, seat, flat, y, per_row) for seat in seats]
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        g = grads[0].reshape(-1, grads[0].shape[-1])  # (N, O)
        dx = ctx.layer.kernel.backward(g) if ctx.needs_input_grad[0] else None  # (N, I)
        for branch in ctx.branches:
            _backward(branch, g, dx)
        return (None if dx is None else dx.view(ctx.shape)), None, None, None


def _forward(layer: PackedLinear, seat: Seat, flat: Tensor, y: Tensor, per_row: int) -> _Branch:
    adapter = seat.adapter
    low_rank, scaling = adapter.low_rank[layer.path], adapter.hyper.scaling
    rows = slice(seat.start * per_row, seat.stop * per_row)
    x, mask = flat[rows], None
    if seat.is_training and adapter.generator is not None:
        mask = _mask(adapter, seat, per_row, x)
        x = x * mask
    h = x @ low_rank.a.t()  # (M, R)
    y[rows].addmm_(h, low_rank.b.t(), alpha=scaling)
    return _Branch(rows, low_rank, scaling, x, h, mask)


def _backward(branch: _Branch, g: Tensor, dx: Tensor | None) -> None:
    rows, (a, b, a_grad, b_grad), scaling, x, h, mask = branch
    own = g[rows]  # (M, O)
    gh = (own @ b).mul_(scaling)  # (M, R)
    b_grad.addmm_(own.t(), h, alpha=scaling)
    a_grad.addmm_(gh.t(), x)
    if dx is None:
        return
    if mask is None:
        dx[rows].addmm_(gh, a)
    else:
        dx[rows].addcmul_(gh @ a, mask)


def _mask(adapter: Adapter, seat: Seat, per_row: int, x: Tensor) -> Tensor:
    """Dropout mask of one slot, (M, I), drawn over its own tokens as if it were alone; padding beyond them is dropped.

    The draws are those of `automl.methods.seeding.SeededDropout` on the slot's own batch.
    """
    keep = 1.0 - adapter.hyper.dropout
    count, tokens = seat.stop - seat.start, min(seat.tokens, per_row)
    drawn = torch.empty(count, tokens, x.shape[-1], device=x.device, dtype=x.dtype)
    drawn.bernoulli_(keep, generator=adapter.generator).div_(keep)
    if tokens < per_row:
        drawn = nn.functional.pad(drawn, (0, 0, 0, per_row - tokens))
    return drawn.view(-1, x.shape[-1])
