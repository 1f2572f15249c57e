"""Rank patterns that a suggested one is held against: as even as possible, and at random, with equal parameters.

One rank of a layer costs in + out parameters; patterns of equal budget differ by less than the costliest such unit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from automl.lora import LinearShape

Ranks = dict[str, int]


def cost(layer: LinearShape) -> int:
    """Parameters of one rank of the layer."""
    return layer.in_features + layer.out_features


def spent(layers: Sequence[LinearShape], ranks: Mapping[str, int]) -> int:
    """Parameters of these ranks."""
    return sum(ranks[layer.path] * cost(layer) for layer in layers)


def even_ranks(layers: Sequence[LinearShape], budget: int) -> Ranks:
    """One rank everywhere, and one more in layers spread evenly over the depth as far as the budget reaches.

    Raises ValueError if rank 1 everywhere costs more.
    """
    rank = budget // sum(map(cost, layers))
    if rank < 1:
        raise ValueError(f"{budget:,} parameters are fewer than rank 1 in {len(layers)} layers needs")
    ranks = {layer.path: rank for layer in layers}
    left = budget - spent(layers, ranks)
    for layer in _spread(layers):
        if cost(layer) <= left:
            ranks[layer.path] += 1
            left -= cost(layer)
    return ranks


def random_ranks(layers: Sequence[LinearShape], budget: int, *, seed: int, low: int, high: int) -> Ranks:
    """At least `low` and at most `high` everywhere, the rest of the budget given out unit by unit at random.

    Raises ValueError if `low` everywhere costs more than the budget, or `high` everywhere less.
    """
    ranks = {layer.path: low for layer in layers}
    left = budget - spent(layers, ranks)
    if left < 0 or spent(layers, dict.fromkeys(ranks, high)) < budget:
        raise ValueError(f"{budget:,} parameters are not between rank {low} and rank {high} in {len(layers)} layers")
    draw = random.Random(seed)  # noqa: S311  # an allocation, not a secret
    while fitting := [layer for layer in layers if ranks[layer.path] < high and cost(layer) <= left]:
        layer = draw.choice(fitting)
        ranks[layer.path] += 1
        left -= cost(layer)
    return ranks


def _spread(layers: Sequence[LinearShape]) -> list[LinearShape]:
    """An order of which every beginning is spread over all layers: by their numbers' binary digits read backwards."""
    width = len(layers).bit_length()
    numbers = sorted(range(len(layers)), key=lambda number: f"{number:0{width}b}"[::-1])
    return [layers[number] for number in numbers]
