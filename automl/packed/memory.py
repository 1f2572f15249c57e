"""Memory: how many adapters fit, told before one is admitted; and keeping what has been freed."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from automl.lora import Hyperparameters
from automl.models.activations import COUNTED
from automl.models.memory import estimate_bytes

logger = logging.getLogger(__name__)

LARGEST_PACK = 256
"""Slots beyond which nothing is gained any more."""

SHARE = 0.8
"""Share of the free memory that may be planned for: others allocate too, and allocators leave gaps."""

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


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


def give_back_memory() -> None:
    """Return what is free to the system and the device, in a process that has trained and does not go on to."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing unless this process uses a GPU
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # the C library is not glibc
            ctypes.CDLL(None).malloc_trim(0)


def capacity(
    model: nn.Module,
    largest: Hyperparameters,
    *,
    tokens: int,
    token_budget: int,
    available: int,
    targets: Mapping[str, Sequence[str]] | None = None,
    dtype: str = "fp32",
    recompute: bool = False,
    device: str = "cpu",
    block: int = 0,
    wanted: int = LARGEST_PACK,
) -> int:
    """How many trials like `largest` fit into `available` bytes, the backbone being loaded already; 1 to `wanted`.

    The other arguments are those of `pack_bytes`. Where there is plenty of room, nothing is counted.
    """

    def fits(slots: int, *, is_bound: bool = False) -> bool:
        needed = pack_bytes(
            model,
            largest,
            slots=slots,
            tokens=tokens,
            token_budget=token_budget,
            targets=targets,
            dtype=dtype,
            recompute=recompute,
            device=device,
            block=block,
            is_bound=is_bound,
        )
        return needed <= int(SHARE * available)

    if fits(wanted, is_bound=True):
        return wanted
    return 1 + bisect_left(range(2, wanted + 1), True, key=lambda slots: not fits(slots))


def pack_bytes(
    model: nn.Module,
    largest: Hyperparameters,
    *,
    slots: int,
    tokens: int,
    token_budget: int,
    targets: Mapping[str, Sequence[str]] | None = None,
    dtype: str = "fp32",
    recompute: bool = False,
    device: str = "cpu",
    block: int = 0,
    is_bound: bool = False,
) -> int:
    """Estimated bytes of a pack of so many trials like `largest`, without the backbone.

    tokens: in one trial's micro-batch, padding included. token_budget: for a micro-step. dtype: type of the
    activations. recompute: with gradient checkpointing. device: its type; on a GPU slots are rows of a bank
    (`packed.bank`), which has one more, and whose update takes two matrices of its size for a moment. block: tokens of
    a block, where rows are joined. is_bound: more than it can be, said at once.
    """
    estimate = estimate_bytes(
        model,
        largest,
        tokens=max(tokens, min(token_budget, slots * tokens)),
        dtype=dtype,
        targets=targets,
        recompute=recompute,
        is_packed=True,
        is_banked=device != "cpu",
        is_bound=is_bound,
        length=block or COUNTED,
        is_joined=block > 0,
    )
    if device == "cpu":
        return slots * estimate.adapter + estimate.step
    rows = slots + 1
    return rows * estimate.adapter + max(estimate.step, rows * estimate.adapter * _UPDATE_SHARE // 16)


_UPDATE_SHARE = 8
"""Bytes of 16 that the update of a bank takes besides."""


def available_bytes(device: torch.device) -> int:
    """Free memory of the device; on a CPU what system, container and limits of this process still have to give."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_system_bytes(), _container_bytes(), _limited_bytes())


def _system_bytes() -> int:
    if not _MEMINFO.exists():
        return sys.maxsize
    fields = dict(line.split(":", maxsplit=1) for line in _MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _limited_bytes() -> int:
    """What `ulimit -v` leaves; the limit is on addresses, of which a process has more than memory."""
    if sys.platform != "linux":
        return sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return max(0, limit - pages * resource.getpagesize())


def _container_bytes() -> int:
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return sys.maxsize
    return max(0, int(limit.read_text()) - int(used.read_text()))
