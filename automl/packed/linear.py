"""A frozen linear layer under the rows of many adapters, with a hand-written backward pass.

For the rows of slot k with scale s and dropout mask m (already divided by 1 - p), x' = m * x:

    forward   y = x Wᵀ + b,  h = x' Aᵀ,  y += s h Bᵀ
    backward  g' = s g B,  dB += s gᵀ h,  dA += g'ᵀ x',  dx = g W,  dx += m * (g' A)

One product with W for all rows; the low-rank part on each slot's rows, only where the slot adapts the layer
(`automl.packed.lora_loop`, or `automl.packed.lora_batched` for the segments of a bank). dA and dB are added straight
into the slots' flat gradients; W gets none. Where nothing below needs a gradient, dx is not computed. Source: Hu et al.
2021, eq. 3. Legend: N rows (of all slots), I, O features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from automl.packed import lora_batched, lora_loop
from automl.packed.kernels import Kernel
from automl.packed.segments import Pack, Segment, Segmentation
from automl.packed.token_losses import token_losses


class PackedLinear:
    """Takes the place of the `forward` of one linear layer; the module stays where it is in the model.

    segmentation: whose rows are where; None for a layer that nobody adapts. dtype: of what the layer takes and returns.
    is_narrow: it is given the first token of every row only (`automl.packed.first_token`). The low-rank part of
    `automl.packed.lora_loop` runs in float32, that of `automl.packed.lora_batched` like the frozen product.
    """

    is_narrow = False
    gives_logits = True
    """Until it is seen that the model goes on with what this layer, its output over a vocabulary, says."""

    def __init__(
        self, path: str, kernel: Kernel, segmentation: Segmentation | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.path = path
        self.kernel = kernel
        self.segmentation = segmentation
        self.dtype = dtype
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, ..., I), or rows and tokens in one dimension; returns (..., O).

        Raises ValueError if these are not the rows of the batch and somebody adapts the layer.
        """
        segments = self._segments()
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        per_row = self._per_row(x) if segments else 0
        # Without the anchor autograd would skip the backward of the lowest adapted layer, whose x needs no gradient.
        y: Tensor = _Packed.apply(flat, self.anchor if segments else None, self, segments, per_row)  # type: ignore[no-untyped-call]
        # Shaped out here: models may change what a layer returns in place, but not a view that a Function made.
        return y.view(*x.shape[:-1], y.shape[-1])

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the targets, (M,) float32, by what the layer says of x, (M, I). Nobody adapts it."""
        with _own_types(x.device.type):
            return token_losses(self.kernel, x.to(self.dtype), targets)

    def _segments(self) -> Pack | Sequence[Segment]:
        """Whose low-rank updates belong here; empty if nobody's do."""
        if self.segmentation is None:
            return ()
        if self.segmentation.pack is not None:
            return self.segmentation.pack if self.path in self.segmentation.pack.bank.stacks else ()
        return [segment for segment in self.segmentation.segments if self.path in segment.adapter.low_rank]

    def _per_row(self, x: Tensor) -> int:
        """Rows of the flattened x that belong to one row of the batch."""
        assert self.segmentation is not None
        rows = self.segmentation.rows
        if x.shape[0] % rows:
            raise ValueError(f"a layer got {x.shape[0]} rows of a batch of {rows}: the model mixes or splits rows")
        return x.shape[:-1].numel() // rows


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor | None,
        layer: PackedLinear,
        segments: Pack | Sequence[Segment],
        per_row: int,
    ) -> Tensor:
        ctx.layer, ctx.dtype, ctx.saved = layer, x.dtype, None
        with _own_types(x.device.type):
            own = x.to(layer.dtype)
            y = layer.kernel.forward(own)  # (N, O)
            if isinstance(segments, Pack):
                ctx.saved = lora_batched.forward(segments, layer.path, own, y, per_row)
            elif segments:
                wide = y.float()
                ctx.saved = lora_loop.forward(
                    layer.path, segments, own.float(), wide, per_row, is_narrow=layer.is_narrow
                )
                y = wide.to(layer.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        layer, saved = ctx.layer, ctx.saved
        with _own_types(grads[0].device.type):
            g = grads[0].contiguous()  # (N, O)
            dx = layer.kernel.backward(g) if ctx.needs_input_grad[0] else None  # (N, I)
            if isinstance(saved, lora_batched.Saved):
                lora_batched.backward(saved, g, dx)
            elif saved is not None:
                dx = None if dx is None else dx.float()
                lora_loop.backward(saved, g.float(), dx)
        return (None if dx is None else dx.to(ctx.dtype)), None, None, None, None


def _own_types(device: str) -> AbstractContextManager[object]:
    """No automatic casts inside the block: types are chosen here."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
