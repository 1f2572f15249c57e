"""How much is computed at once, and going on with fewer rows when memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from automl.errors import OutOfMemory, is_out_of_memory

T = TypeVar("T")

TOKEN_BUDGET = {"cpu": 4096, "cuda": 8192}
"""Tokens of one micro-step, padding included, by type of device. A batch that has more is computed in parts."""


def halving(size: int, work: Callable[[int], T], *, what: str) -> tuple[T, int]:
    """`work(size)`, with `size` halved after each failure for want of memory; returns the result and the last size.

    `work` must be repeatable. Raises OutOfMemory if not even size 1 fits; `what` says what it was, for the message.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise OutOfMemory(f"{what} does not fit into memory even one row at a time: {error}") from error
        # Out of the except block first: the traceback keeps the tensors of the failed attempt alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = max(1, size // 2)
