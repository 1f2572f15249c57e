"""Memory: whether an error means there was too little of it, and how many adapters fit before one is admitted."""

from __future__ import annotations

import torch

_PHRASES = ("out of memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory was not enough, on any device.

    torch has a class for accelerators only; its CPU allocator raises a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)
