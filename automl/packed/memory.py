"""Memory: whether an error means there was too little of it, and how many adapters fit before one is admitted."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

logger = logging.getLogger(__name__)

_PHRASES = ("out of memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory was not enough, on any device.

    torch has a class for accelerators only; its CPU allocator raises a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, if its C library is glibc; returns whether it does now.

    Activations are allocated and freed in every step. By default glibc hands blocks of their size back to the system
    each time, and every page of them is mapped and zeroed anew: about 1,000 page faults per trial-step of MiniLM with
    96 tokens, 5 to 10 % of its time. The resident memory then stays at its peak. Source: man 3 mallopt.
    """
    if sys.platform != "linux":
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        logger.info("the C library has no mallopt; freed memory goes back to the system at every step")
        return False
    settings = {mmap_threshold: 2**30, trim_threshold: 2**31 - 1, top_pad: 2**26}
    answers = [mallopt(option, value) for option, value in settings.items()]  # set all, whatever the first says
    return all(answer == 1 for answer in answers)
