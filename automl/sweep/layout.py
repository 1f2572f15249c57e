"""How a sweep uses the machine: how many workers, how many threads each, on which device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from automl.errors import ResourceError
from automl.space.spec import RunSettings

_MOST_CPU_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """workers x threads on a device ("cpu" or "cuda"); with CUDA every worker owns one GPU."""

    workers: int
    threads: int
    device: str

    @property
    def gpus_per_worker(self) -> int:
        """GPUs each worker reserves."""
        return int(self.device == "cuda")


def choose_layout(run: RunSettings, *, trials: int) -> Layout:
    """Workers, threads and device for this machine; what `run:` fixes is kept.

    On CPUs: one worker per core up to four, the cores shared out among them, since LoRA batches are too small to keep
    many threads of one process busy. On GPUs: one worker per device. Raises ResourceError if a GPU is asked for and
    there is none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = 0 if run.device == "cpu" else gpu_count()
    if run.device == "cuda" and not gpus:
        raise ResourceError("run.device: cuda was asked for, but this machine shows no CUDA device; use auto or cpu")
    most = 1 if run.executor == "inline" else gpus or min(cores, _MOST_CPU_WORKERS)
    workers = min(run.workers or most, trials)
    return Layout(workers=workers, threads=run.threads or max(1, cores // workers), device="cuda" if gpus else "cpu")


def gpu_count() -> int:
    """CUDA devices torch can use. Does not import torch where no NVIDIA driver is loaded."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() or os.name == "nt"):
        return 0
    import torch

    return torch.cuda.device_count()
