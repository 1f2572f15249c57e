"""Where weights, gradients and optimizer states lie if several devices train one model: bytes, by arithmetic alone.

The names are DeepSpeed's; FSDP's full sharding is `zero-3`. Sources: Rajbhandari et al. 2020 (ZeRO, 1910.02054),
section 3 and figure 1; Ren et al. 2021 (ZeRO-Offload, 2101.06840), section 3.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

Strategy = Literal["one-device", "data-parallel", "zero-1", "zero-2", "zero-3", "offload", "zero-3-offload"]

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""From the one that moves the least between devices to the one that moves the most."""

MEANINGS: dict[Strategy, str] = {
    "one-device": "everything on one device",
    "data-parallel": "everything on each device, rows shared out (DDP)",
    "zero-1": "optimizer states shared out",
    "zero-2": "optimizer states and gradients shared out",
    "zero-3": "optimizer states, gradients and weights shared out (FSDP)",
    "offload": "gradients and optimizer states in the host's memory (ZeRO-Offload)",
    "zero-3-offload": "weights, gradients and optimizer states shared out and in the host's memory (FSDP, offloaded)",
}

_SHARED: dict[Strategy, tuple[str, ...]] = {
    "zero-1": ("optimizer",),
    "zero-2": ("optimizer", "gradients"),
    "zero-3": ("optimizer", "gradients", "trained", "frozen"),
    "zero-3-offload": ("optimizer", "gradients", "trained", "frozen"),
}
_ON_HOST: dict[Strategy, tuple[str, ...]] = {
    "offload": ("optimizer", "gradients"),
    "zero-3-offload": ("optimizer", "gradients", "trained", "frozen"),
}

_BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at a time: `reduce_bucket_size`, by default."""


class Recipe(NamedTuple):
    """Bytes per trained parameter. weights: what is computed with. optimizer: AdamW's two moments of float32, and the
    float32 copy of the weights where they are computed with in 16 bits.
    """

    weights: int
    gradients: int
    optimizer: int


RECIPES: dict[str, Recipe] = {"fp32": Recipe(4, 4, 8), "bf16": Recipe(2, 2, 12), "fp16": Recipe(2, 2, 12)}
"""By precision: 16 bytes in each. Sources: Loshchilov & Hutter 2019; Micikevicius et al. 2018; ZeRO, section 3.1."""


class States(NamedTuple):
    """Bytes that are there in every step whatever the batch. frozen: weights that are not trained."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(self)


def states(frozen: int, parameters: int, recipe: Recipe) -> States:
    """The states of one copy of a model. frozen: bytes. parameters: trained ones."""
    return States(frozen, *(parameters * width for width in recipe))


class Split(NamedTuple):
    """What one device holds, and what lies in the host's memory for it."""

    device: States
    host: States


def split(whole: States, strategy: Strategy, devices: int) -> Split:
    """The part of one of `devices`, and of the host for it; what is shared out is rounded up."""
    shared, moved = _SHARED.get(strategy, ()), _ON_HOST.get(strategy, ())
    parts = {name: math.ceil(size / devices) if name in shared else size for name, size in whole._asdict().items()}
    return Split(
        States(**{name: 0 if name in moved else size for name, size in parts.items()}),
        States(**{name: size if name in moved else 0 for name, size in parts.items()}),
    )


def buffers(whole: States, strategy: Strategy, *, largest_block: int, gradient_width: int) -> int:
    """Bytes on a device for what travels between devices.

    largest_block: bytes of the weights that are gathered at a time. zero-3 holds one such block and the next one. DDP's
    buckets are as large as all gradients (torch, DistributedDataParallel, gradient_as_bucket_view); DeepSpeed's hold
    _BUCKET numbers.
    """
    if strategy.startswith("zero-3"):
        return 2 * largest_block
    if strategy == "data-parallel":
        return whole.gradients
    if strategy in ("zero-1", "zero-2", "offload"):
        return min(whole.gradients, _BUCKET * gradient_width)
    return 0
