"""The low-rank part of a layer for all slots at once: a fixed number of kernels, whatever the number of slots.

For devices where launching a kernel costs more than running it. Slots are padded to one rank (`automl.packed.bank`) and
seated with equal numbers of rows. Legend: K slots seated, M rows of each, I, O features, R padded rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from automl.packed.bank import Bank, Stack
from automl.packed.loop import draw_mask
from automl.packed.seating import Seat


class Saved(NamedTuple):
    """What the backward pass needs. x: (K, M, I) after dropout, h: (K, M, R) already scaled, mask: like x or None."""

    stack: Stack
    rows: Tensor
    a: Tensor
    b: Tensor
    scaling: Tensor
    x: Tensor
    h: Tensor
    mask: Tensor | None


def forward(
    bank: Bank, path: str, seats: Sequence[Seat], x: Tensor, y: Tensor, per_row: int, *, is_narrow: bool = False
) -> Saved:
    """As `automl.packed.loop.forward`; slots that do not adapt the layer have zeros there."""
    stack, count = bank.stacks[path], len(seats)
    rows = torch.tensor([seat.adapter.storage.row for seat in seats], device=x.device)  # (K,)
    scaling = torch.tensor([seat.adapter.hyper.scaling for seat in seats], device=x.device).view(-1, 1, 1)
    a, b = stack.a[rows], stack.b[rows]  # (K, R, I), (K, O, R)
    x = x.view(count, -1, x.shape[-1])  # (K, M, I)
    mask = _masks(path, seats, per_row, x, is_narrow)
    if mask is not None:
        x = x * mask
    h = torch.bmm(x, a.mT).mul_(scaling)  # (K, M, R)
    y.view(count, -1, y.shape[-1]).baddbmm_(h, b.mT)
    return Saved(stack, rows, a, b, scaling, x, h, mask)


def backward(saved: Saved, g: Tensor, dx: Tensor | None) -> None:
    """As `automl.packed.loop.backward`."""
    stack, rows, a, b, scaling, x, h, mask = saved
    count = len(rows)
    g = g.view(count, -1, g.shape[-1])  # (K, M, O)
    gh = torch.bmm(g, b).mul_(scaling)  # (K, M, R)
    stack.b_grad.index_add_(0, rows, torch.bmm(g.mT, h))
    stack.a_grad.index_add_(0, rows, torch.bmm(gh.mT, x))
    if dx is None:
        return
    own = dx.view(count, -1, dx.shape[-1])  # (K, M, I)
    if mask is None:
        own.baddbmm_(gh, a)
    else:
        own.addcmul_(torch.bmm(gh, a), mask)


def _masks(path: str, seats: Sequence[Seat], per_row: int, x: Tensor, is_narrow: bool) -> Tensor | None:
    """Masks of the slots that adapt the layer, ones for the others. A generator of its own draws each slot's."""
    drawn = [
        draw_mask(seat, per_row, x, is_narrow=is_narrow) if path in seat.adapter.low_rank else None for seat in seats
    ]
    if all(mask is None for mask in drawn):
        return None
    masks = torch.ones_like(x)
    for own, mask in zip(masks, drawn, strict=True):
        if mask is not None:
            own.copy_(mask.reshape(own.shape))
    return masks
