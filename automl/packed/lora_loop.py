"""The low-rank part of a layer, slot by slot: no padding, and to the bit the same whoever else is in the pack.

The reference for `automl.packed.lora_batched`, and the faster of the two on a CPU. Legend: N rows of all slots, M of
one slot, I, O features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl.methods.seeding import dropout_mask
from automl.packed import masks
from automl.packed.adapter import LowRank
from automl.packed.segments import Segment


class Saved(NamedTuple):
    """What the backward pass needs of one slot: its rows, x' (M, I), h (M, R), the mask (M, I) or None.

    x: None if A is not trained.
    """

    rows: slice
    low_rank: LowRank
    scaling: float
    x: Tensor | None
    h: Tensor
    mask: Tensor | None


def forward(
    path: str, segments: Sequence[Segment], x: Tensor, y: Tensor, per_row: int, *, is_narrow: bool = False
) -> list[Saved]:
    """Add every slot's update of the layer at `path` to its rows of y. x: (N, I), y: (N, O), changed in place.

    per_row: tokens of a row of the batch, so N is the number of rows times per_row. is_narrow: the rest of every row
    has been left out (`automl.packed.first_token`).
    """
    return [_forward(path, segment, x, y, per_row, is_narrow) for segment in segments]


def backward(saved: Sequence[Saved], g: Tensor, dx: Tensor | None) -> None:
    """Add to the slots' gradients, and to dx if it is wanted. g: (N, O), dx: (N, I), changed in place."""
    for slot in saved:
        _backward(slot, g, dx)


def draw_mask(path: str, segment: Segment, per_row: int, like: Tensor, *, is_narrow: bool = False) -> Tensor | None:
    """Dropout mask of one slot, scaled, (rows, per_row, I); None if it has no dropout.

    Drawn over the slot's own tokens as if it were alone, so padding for the sake of a pack costs no random numbers; the
    draws are those of `automl.methods.seeding.SeededDropout` on its batch, also for tokens that a narrow layer leaves
    out. Counted masks are those that a bank gives the layer at `path`. like: any tensor (..., I) of its device.
    """
    adapter = segment.adapter
    if segment.is_training and adapter.mask_seed is not None:
        return _counted_mask(path, segment, per_row, like)
    if not segment.is_training or adapter.generator is None:
        return None
    tokens = segment.tokens if is_narrow else min(segment.tokens, per_row)
    shape = (segment.stop - segment.start, tokens, like.shape[-1])
    mask = dropout_mask(shape, adapter.hyper.dropout, adapter.generator)[:, :per_row]
    return nn.functional.pad(mask, (0, 0, 0, per_row - tokens)) if tokens < per_row else mask


def _counted_mask(path: str, segment: Segment, per_row: int, like: Tensor) -> Tensor:
    adapter, dropout = segment.adapter, segment.adapter.hyper.dropout
    seeds, steps, first, limits = (
        torch.tensor([number], dtype=torch.int32, device=like.device)
        for number in (adapter.mask_seed, adapter.step, segment.first, masks.keep_limit(dropout))
    )
    drawn = masks.bits(seeds, steps, first, (segment.stop - segment.start, per_row, like.shape[-1]))
    return masks.layer_mask(drawn, path, limits)[0].to(like.dtype).div_(1.0 - dropout)


def _forward(path: str, segment: Segment, x: Tensor, y: Tensor, per_row: int, is_narrow: bool) -> Saved:
    low_rank, scaling = segment.adapter.low_rank[path], segment.adapter.hyper.scaling
    rows = slice(segment.start * per_row, segment.stop * per_row)
    own, mask = x[rows], draw_mask(path, segment, per_row, x, is_narrow=is_narrow)
    if mask is not None:
        mask = mask.reshape(own.shape)
        own = own * mask
    h = (low_rank.a @ own.t()).t()  # (M, R); twice as fast as the product that is R wide
    y[rows].addmm_(h, low_rank.b.t(), alpha=scaling)
    if (part := low_rank.part) is not None:  # of the weight, which dropout leaves alone
        y[rows].addmm_(x[rows] @ part.a.t(), part.b.t(), alpha=-part.scaling)
    return Saved(rows, low_rank, scaling, None if low_rank.a_grad is None else own, h, mask)


def _backward(slot: Saved, g: Tensor, dx: Tensor | None) -> None:
    rows, (a, b, a_grad, b_grad, part), scaling, x, h, mask = slot
    own = g[rows]  # (M, O)
    b_grad.add_((h.t() @ own).t(), alpha=scaling)
    if a_grad is None and dx is None:
        return
    gh = (b.t() @ own.t()).mul_(scaling).t()  # (M, R)
    if a_grad is not None and x is not None:
        a_grad.addmm_(gh.t(), x)
    if dx is None:
        return
    if part is not None:
        dx[rows].addmm_(own @ part.b, part.a, alpha=-part.scaling)
    if mask is None:
        dx[rows].addmm_(gh, a)
    else:
        dx[rows].addcmul_(gh @ a, mask)
