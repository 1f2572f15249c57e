"""Dropout masks of all slots at once, counted and not drawn: a function of seed, step, layer and position alone.

A generator per slot would need a kernel per slot and layer, and its state would have to be put back when activations
are recomputed. Here every element of a micro-step gets 32 well-mixed bits once, for all slots together, and a layer
keeps an element if these bits times an odd number of its own lie below a limit. So a mask depends on no neighbour, on
no padding, not on how a batch was split, and it is the same on every device, to the bit.
Source of the mixing: lowbias32 (C. Wellons, "Prospecting for hash functions", 2018); of the products: multiply-shift
hashing (Dietzfelbinger et al. 1997). Legend: K slots, B rows of a slot, T tokens of a row, I features.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

LOWEST = -(2**31)
_GOLDEN = -1640531527  # 2^32 divided by the golden ratio, as a signed number


def mask_seed(seed: int) -> int:
    """The number that names a trial's masks, 31 bits, from the trial's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:masks".encode()).digest()[:4], "big") >> 1


def keep_limit(dropout: float) -> int:
    """Largest value of the 32 signed bits that is kept; without dropout the largest there is."""
    return LOWEST + round((1.0 - dropout) * 2**32) - 1


def bits(seeds: Tensor, steps: Tensor, first: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Mixed bits, (K, B, T, I) int32. seeds, steps, first: (K,) int32; first: number of a slot's first row in a batch.

    shape: (B, T, I). Row, token and feature are counted from 0, so a longer or wider rectangle begins with the same
    bits.
    """
    rows, tokens, features = (torch.arange(size, dtype=torch.int32, device=seeds.device) for size in shape)
    key = _mixed(_mixed(seeds + 1).bitwise_xor_(steps)).view(-1, 1, 1)  # (K, 1, 1)
    key = _mixed(key.bitwise_xor(first.view(-1, 1, 1) + rows.view(1, -1, 1)))  # (K, B, 1)
    key = _mixed(key.bitwise_xor(tokens.view(1, 1, -1) * _GOLDEN))  # (K, B, T)
    return _mixed(key.unsqueeze(-1).bitwise_xor(features * _GOLDEN))  # (K, B, T, I)


def layer_mask(drawn: Tensor, path: str, limits: Tensor) -> Tensor:
    """Which inputs of the layer at `path` are kept, bool like `drawn`. limits: (K, 1, 1, 1) int32 of `keep_limit`."""
    return drawn * _factor(path) <= limits


def _mixed(x: Tensor) -> Tensor:
    """lowbias32, elementwise on int32 with wrap-around; the shifts are made logical by clearing the sign's copies."""
    x = x.bitwise_xor((x >> 16).bitwise_and_(0xFFFF)) * 0x7FEB352D
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(-2073254261)  # 0x846CA68B
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


@lru_cache(maxsize=4096)
def _factor(path: str) -> int:
    """An odd signed 32-bit number for a layer."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big", signed=True) | 1
