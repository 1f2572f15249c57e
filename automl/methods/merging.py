"""Several updates of one weight made into one by a vote over their entries: what PEFT has of TIES and DARE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from peft.utils.merge_utils import dare_ties, ties
from torch import Tensor

from automl.methods.seeding import stream

Majority = Literal["total", "frequency"]
"""Whose sign counts: that of the sum, or that of most updates."""


def elected(updates: Sequence[Tensor], density: float, majority: Majority) -> Tensor:
    """TIES: the `density` largest entries of each update are kept, and those of the sign most have are averaged.

    Source: Yadav et al. 2023 (TIES-Merging, 2306.01708), algorithm 1, with lambda = 1.
    """
    merged: Tensor = ties(list(updates), torch.ones(len(updates)), density, majority)
    return merged


def dropped_and_elected(updates: Sequence[Tensor], density: float, majority: Majority, name: str) -> Tensor:
    """TIES with the random part of DARE in the place of the largest entries, rescaled by 1 / density.

    The entries are drawn from `name` alone; torch's generators are as they were. Source: Yu et al. 2023 (DARE,
    2311.03099), eq. 3 and section 4.3.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(0, f"{name}.dare").initial_seed())
        merged: Tensor = dare_ties(list(updates), torch.ones(len(updates)), density, majority)
    return merged
