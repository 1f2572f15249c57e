"""The low-rank part of a layer for all slots at once: a fixed number of kernels, whatever the number of slots.

For devices where launching a kernel costs more than running it. Slots are padded to one rank (`automl.packed.bank`)
and, here but not in the frozen product, to equal numbers of rows (`automl.packed.segments.Pack`). Products run in the
type of x, float32 or bfloat16; parameters and gradients are float32. Legend: K slots of the pack, M places of each,
I, O features, R padded rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from automl.packed.bank import Stack
from automl.packed.segments import Pack


class Saved(NamedTuple):
    """What the backward pass needs. x: (K, M, I) after dropout, h: (K, M, R) already scaled, mask: like x or None."""

    stack: Stack
    pack: Pack
    a: Tensor
    b: Tensor
    x: Tensor
    h: Tensor
    mask: Tensor | None


def forward(pack: Pack, path: str, x: Tensor, y: Tensor, per_row: int) -> Saved:
    """See `automl.packed.lora_loop.forward`; slots that do not adapt the layer have zeros there."""
    stack = pack.bank.stacks[path]
    a, b = (matrix.index_select(0, pack.rows).to(x.dtype) for matrix in (stack.a, stack.b))  # (K, R, I), (K, O, R)
    x = pack.by_segment(x)  # (K, M, I)
    mask = pack.mask(path, x, per_row)
    if mask is not None:
        x = x * mask  # the division by 1 - dropout is in the scaling
    h = torch.bmm(x, a.mT).mul_(pack.scaling(x.shape[1]))  # (K, M, R)
    pack.add_to(y, h, b.mT)
    return Saved(stack, pack, a, b, x, h, mask)


def backward(saved: Saved, g: Tensor, dx: Tensor | None) -> None:
    """See `automl.packed.lora_loop.backward`."""
    stack, pack, a, b, x, h, mask = saved
    g = pack.by_segment(g)  # (K, M, O)
    gh = torch.bmm(g, b).mul_(pack.scaling(g.shape[1]))  # (K, M, R)
    stack.b_grad.index_add_(0, pack.rows, torch.bmm(g.mT, h).float())
    stack.a_grad.index_add_(0, pack.rows, torch.bmm(gh.mT, x).float())
    if dx is None:
        return
    if mask is None:
        pack.add_to(dx, gh, a)
    else:
        dx.add_(pack.by_row(torch.bmm(gh, a).mul_(mask)))
