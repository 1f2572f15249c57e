"""How a sweep uses the machine: how many workers, how many threads each, on which device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from automl.errors import ResourceError
from automl.space.spec import RunSettings

_MOST_CPU_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """workers x threads on a device ("cpu" or "cuda"); with CUDA every worker owns one GPU.

    shards: with more than one, a worker is a group of so many processes, each with as many threads and its own GPU.
    cores: usable on the machine of the driver. rates: products per second by "workers x threads", where that was
    measured.
    """

    workers: int
    threads: int
    device: str
    shards: int = 1
    cores: int = 1
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def gpus_per_worker(self) -> int:
        """GPUs each worker reserves, or each process of its group."""
        return int(self.device == "cuda")

    @property
    def devices(self) -> int:
        """Devices that are held while there are workers: GPUs, or on CPUs processes."""
        return self.workers * self.shards

    @property
    def is_here(self) -> bool:
        """Whether this machine has such a device: the workers' may be on other nodes of a cluster alone."""
        return self.device == "cpu" or gpu_count() > 0

    @property
    def each(self) -> str:
        """What a worker consists of, for a person."""
        group = f"{self.shards} processes x " if self.shards > 1 else ""
        return f"{group}{self.threads} threads"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def choose_layout(run: RunSettings, *, trials: int, recorded: Mapping[str, Any] | None = None) -> Layout:
    """Workers, threads and device for this machine; what `run:` fixes is kept.

    - On GPUs: one worker per device.
    - On CPUs: at most four workers that share the cores; how many is found out by timing frozen products for a moment.
    - With shards: a worker takes as many devices, GPUs or cores, as there are shards.

    A curve depends on the number of threads, by the rounding of sums, and on nothing else here. Which trials run at the
    same time, and so what a sampler knows, depends on the number of workers.

    recorded: the layout of an earlier run of the study as `as_dict` gave it, kept on a machine with as many cores.
    With `device: cuda` a cluster to join is asked for GPUs, whatever this machine has: as many workers as `run.workers`
    says, and one without.

    Raises ResourceError if a GPU is asked for here and there is none, or if there are too few for the shards; what a
    cluster to join has is seen when it is joined.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = 0 if run.device == "cpu" else gpu_count()
    if run.device == "cuda" and not gpus:
        return _elsewhere(run, trials=trials, cores=cores)
    if run.shards > 1:
        return _sharded(run, trials=trials, cores=cores, gpus=gpus)
    most = min(trials, 1 if run.executor == "inline" else gpus or min(cores, _MOST_CPU_WORKERS))
    if gpus or most == 1 or run.workers or run.threads:
        workers = min(run.workers or most, trials)
        threads = run.threads or max(1, cores // workers)
        return Layout(workers=workers, threads=threads, device="cuda" if gpus else "cpu", cores=cores)
    if recorded and (recorded["device"], recorded["cores"]) == ("cpu", cores) and recorded["workers"] <= most:
        return Layout(**recorded)
    return _measured(cores, most)


def _elsewhere(run: RunSettings, *, trials: int, cores: int) -> Layout:
    """GPUs of a cluster to join. Raises ResourceError if there is none: this machine has no GPU."""
    if run.address is None:
        what = "cuda was asked for, but this machine shows no CUDA device"
        raise ResourceError(f"run.device: {what}; use auto or cpu, or a cluster that has some (run.address)")
    workers = min(run.workers or 1, trials)
    threads = run.threads or max(1, cores // (workers * run.shards))
    return Layout(workers=workers, threads=threads, device="cuda", shards=run.shards, cores=cores)


def _sharded(run: RunSettings, *, trials: int, cores: int, gpus: int) -> Layout:
    """One group of processes for as many devices as there are shards, and as many groups as there is room for."""
    devices = gpus or cores
    workers = min(trials, run.workers or max(1, devices // run.shards))
    if run.address is None and workers * run.shards > devices:
        what = f"{workers} workers x {run.shards} shards" if workers > 1 else f"{run.shards}"
        raise ResourceError(
            f"run.shards: {what} need as many {'GPUs' if gpus else 'cores'}, and this machine has {devices};"
            " choose fewer, or a cluster that has them (run.address)"
        )
    threads = run.threads or max(1, cores // (workers * run.shards))
    return Layout(workers=workers, threads=threads, device="cuda" if gpus else "cpu", shards=run.shards, cores=cores)


def _measured(cores: int, most: int) -> Layout:
    from automl.setup.cores import choose, measure, splits

    rates = measure(splits(cores, most))
    workers, threads = choose(rates)
    readable = {f"{count} x {each}": round(rate, 1) for (count, each), rate in rates.items()}
    return Layout(workers=workers, threads=threads, device="cpu", cores=cores, rates=readable)


def gpu_count() -> int:
    """CUDA devices torch can use. Does not import torch where no NVIDIA driver is loaded."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() or os.name == "nt"):
        return 0
    import torch

    return torch.cuda.device_count()
