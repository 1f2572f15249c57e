"""How many directions each module keeps at a size: those with the most strength per parameter over all modules.

Plain arithmetic on what a squeeze has found of an adapter; the directions themselves are `automl.importance.squeeze`'s.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def global_ranks(
    strengths: Sequence[Sequence[float]], costs: Sequence[int], budget: int, *, least: int = 0
) -> list[int]:
    """How many directions each module keeps if those with the most strength per parameter are kept; 0 is possible.

    strengths: those of each module's directions, largest first. costs: parameters of one direction of each. At most
    `budget` parameters are spent; what is left over is less than the largest cost, or nothing is left to keep. least:
    what every module keeps, or all it has. Ties go to the earlier module. With equal costs and no least rank these are
    the best directions of all (the allocation of AdaLoRA, Zhang et al. 2023, section 3.2); else optimal up to the last.
    Raises ValueError if the least ranks alone cost more than the budget.
    """
    ranks = even_ranks(strengths, least)
    left = budget - parameters(ranks, costs)
    if left < 0:
        raise ValueError(f"{budget:,} parameters are {-left:,} fewer than rank {least} in every module needs")

    def next_of(module: int) -> tuple[float, int]:
        return -strengths[module][ranks[module]] / costs[module], module

    waiting = [next_of(module) for module in range(len(costs)) if ranks[module] < len(strengths[module])]
    heapq.heapify(waiting)
    while waiting:
        _, module = heapq.heappop(waiting)
        if costs[module] > left:
            continue
        left -= costs[module]
        ranks[module] += 1
        if ranks[module] < len(strengths[module]):
            heapq.heappush(waiting, next_of(module))
    return ranks


def even_ranks(strengths: Sequence[Sequence[float]], rank: int) -> list[int]:
    """The comparison: the strongest `rank` directions of every module, or as many as it has."""
    return [min(rank, len(of_module)) for of_module in strengths]


def parameters(ranks: Sequence[int], costs: Sequence[int]) -> int:
    """Parameters of the low-rank matrices at these ranks."""
    return sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))


def kept_share(strengths: Sequence[Sequence[float]], ranks: Sequence[int]) -> float:
    """Share of all strength that is kept, in [0, 1]."""
    total = sum(map(sum, strengths))
    return sum(sum(of_module[:rank]) for of_module, rank in zip(strengths, ranks, strict=True)) / total
