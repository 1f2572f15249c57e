"""Ranks for a budget of parameters: the most score per parameter first, within a floor and a ceiling."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate


def allocate(
    scores: Sequence[Sequence[float]],
    costs: Sequence[int],
    budget: int,
    *,
    floors: Sequence[int],
    ceilings: Sequence[int],
) -> list[int]:
    """Ranks that spend at most `budget` parameters; what is left over is less than the largest cost.

    scores: for the components of each module, the first component first; more components than there are scores are
    worth nothing. costs: parameters of one rank of each module. floors, ceilings: least and largest rank of each
    module; beyond its ceiling, or with a unit that does not fit any more, a module gets nothing and cheaper ones go on.
    A score above an earlier one of its module counts as that one, since component i + 1 cannot be had without i. Ties
    go to the earlier module. More is left over only if all ceilings are reached.

    Optimal up to the last unit. The allocation of AdaLoRA (Zhang et al. 2023, section 3.2) is the case of equal costs.
    Raises ValueError if the floors alone cost more than the budget.
    """
    ranks = [min(low, high) for low, high in zip(floors, ceilings, strict=True)]
    left = budget - sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    if left < 0:
        raise ValueError(f"{budget:,} parameters are {-left:,} fewer than the least ranks need")
    values = [list(accumulate(of_module, min)) for of_module in scores]

    def unit(module: int) -> tuple[float, int]:
        rank = ranks[module]
        value = values[module][rank] if rank < len(values[module]) else 0.0
        return -value / costs[module], module

    waiting = [unit(module) for module in range(len(costs)) if ranks[module] < ceilings[module]]
    heapq.heapify(waiting)
    while waiting:
        _, module = heapq.heappop(waiting)
        if costs[module] > left:
            continue
        left -= costs[module]
        ranks[module] += 1
        if ranks[module] < ceilings[module]:
            heapq.heappush(waiting, unit(module))
    return ranks


def bounds(mean_rank: float) -> tuple[int, int]:
    """Floor and ceiling of every module's rank: half the uniform rank but at least 1, and four times the mean."""
    return max(1, int(mean_rank) // 2), max(1, int(4 * mean_rank))
