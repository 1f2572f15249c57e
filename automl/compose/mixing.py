"""The low-rank updates of one layer in several adapters, made into one.

An update is a change of the layer's weight, ΔW = s·B·A; what is mixed is ΔW, not A and B, which each adapter has begun
elsewhere: A and B of two adapters with equal ΔW may have nothing in common. `linear` alone works on A and B. A layer
that an adapter leaves alone has ΔW = 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from automl.importance.squeeze import directions
from automl.methods.base import LowRank
from automl.methods.merging import Majority, dropped_and_elected, elected

How = Literal["soup", "svd", "ties", "dare_ties", "linear", "fusion"]

FUSION: How = "fusion"
"""The way that trains, which is no mixing of tensors: `automl.compose.fusing`."""

_NOTHING = 1e-6
"""Singular values below this share of the largest are rounding."""
TAKES_DENSITY = ("ties", "dare_ties")
TAKES_RANK = ("svd", "ties", "dare_ties")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How adapters are mixed. density: share of entries that are kept, with a vote alone. rank: of what is cut to one;
    None: the highest of the updates. steps: of a fusion's training; None: those of its first member.
    """

    how: How
    density: float | None = None
    rank: int | None = None
    majority: Majority = "total"
    steps: int | None = None


def mixed(updates: Sequence[LowRank], of: int, recipe: Recipe) -> LowRank:
    """One update of scaling 1 made of those that `of` adapters have for a layer; the others have none.

    Raises CheckpointError if the weights are not finite.
    """
    return _MIXERS[recipe.how](updates, of, recipe)


def _soup(updates: Sequence[LowRank], of: int, recipe: Recipe) -> LowRank:
    """The mean of ΔW, exactly: of a rank up to the sum of ranks. Source: Wortsman et al. 2022 (2203.05482)."""
    path = updates[0].path
    a = torch.cat([update.scaling / of * update.a.double() for update in updates])
    found = directions(LowRank(path, a, torch.cat([update.b.double() for update in updates], dim=1), 1.0), 1.0)
    return LowRank(path, found.a, found.b, 1.0)


def _svd(updates: Sequence[LowRank], of: int, recipe: Recipe) -> LowRank:
    """The best approximation of the soup of that rank in the Frobenius norm (Eckart and Young 1936)."""
    path, a, b, scaling = _soup(updates, of, recipe)
    rank = _rank(updates, recipe)
    return LowRank(path, a[:rank], b[:, :rank], scaling)


def _vote(updates: Sequence[LowRank], of: int, recipe: Recipe) -> LowRank:
    """A vote over the entries of ΔW, cut to a rank. Adapters without this layer have no entries that could vote."""
    path, density = updates[0].path, recipe.density
    assert density is not None
    weights = [(update.scaling * update.b.float()) @ update.a.float() for update in updates]
    if recipe.how == "ties":
        merged = elected(weights, density, recipe.majority)
    else:
        merged = dropped_and_elected(weights, density, recipe.majority, path)
    return _cut(path, merged, _rank(updates, recipe))


def _cut(path: str, weight: Tensor, rank: int) -> LowRank:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = values[: min(rank, int((values > _NOTHING * values[:1]).sum()))].sqrt()
    return LowRank(path, roots.unsqueeze(1) * right[: len(roots)], left[:, : len(roots)] * roots, 1.0)


def _linear(updates: Sequence[LowRank], of: int, recipe: Recipe) -> LowRank:
    """A and B added up, each times √(s / adapters), as PEFT's `linear`: every B meets the A of every other adapter."""
    shares = [math.sqrt(update.scaling / of) for update in updates]
    a = torch.stack([share * update.a for share, update in zip(shares, updates, strict=True)]).sum(0)
    b = torch.stack([share * update.b for share, update in zip(shares, updates, strict=True)]).sum(0)
    return LowRank(updates[0].path, a, b, 1.0)


def _rank(updates: Sequence[LowRank], recipe: Recipe) -> int:
    return recipe.rank or max(len(update.a) for update in updates)


_MIXERS: Mapping[How, Callable[[Sequence[LowRank], int, Recipe], LowRank]] = {
    "soup": _soup,
    "svd": _svd,
    "ties": _vote,
    "dare_ties": _vote,
    "linear": _linear,
}
MIXED = tuple(_MIXERS)
HOWS = (*MIXED, FUSION)
