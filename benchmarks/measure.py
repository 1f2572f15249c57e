"""How everything here is measured: interleaved rounds, CPU and wall time, the machine, its GEMM peak, memory."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import psutil  # type: ignore[import-untyped]  # it has no annotations

from automl.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent

T = TypeVar("T")


class Timing(NamedTuple):
    """Seconds of CPU time of this process (all its threads) and of wall time."""

    cpu: float
    wall: float

    def per(self, number: float) -> Timing:
        """The share of one of `number` equal pieces of work."""
        return Timing(self.cpu / number, self.wall / number)


class Spread(NamedTuple):
    """Median and range of the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 1) -> str:
        """The cell of a table: `12.3 (11.9–14.0)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def timed(work: Callable[[], object], *, finish: Callable[[], None] = lambda: None) -> Timing:
    """Time of `work` and of `finish`, which waits for a device that works on its own."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    finish()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every arm once in each round, A B C A B C, in reversed order in the second half; results by arm.

    So whatever changes slowly on the machine meets all arms alike.
    """
    results: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(rounds):
        names = list(arms)
        for name in names if 2 * number < rounds else reversed(names):
            results[name].append(arms[name]())
    return results


def spread(values: Sequence[float]) -> Spread:
    """Median, least and largest. Raises ValueError if there are no values."""
    if not values:
        raise ValueError("no rounds were measured")
    return Spread(statistics.median(values), min(values), max(values))


def repetitions(seconds: float, at_least: float, *, most: int = 200) -> int:
    """How often work of `seconds` must be repeated to last `at_least` seconds; from 1 to `most`."""
    return max(1, min(most, round(at_least / max(seconds, 1e-9))))


def machine() -> dict[str, Any]:
    """Commit, versions, CPU, threads, load: what a figure is worth nothing without. No user names, no paths."""
    found: dict[str, Any] = dict(provenance(ROOT))
    del found["folder"]
    return found | {
        "commit": found.pop("git"),
        "accelerate": _version("accelerate"),
        "cpu_flags": _cpu_flags(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "threads": _threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": os.getloadavg(),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class Disturbance:
    """What else kept the CPUs busy between construction and `read`."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()
        self._wall = time.perf_counter()

    def read(self) -> dict[str, Any]:
        """Load average now, and seconds since then: wall, busy (all CPUs, all processes), stolen by the host."""
        now = psutil.cpu_times()
        return {
            "load": os.getloadavg(),
            "wall_seconds": time.perf_counter() - self._wall,
            "busy_seconds": (now.user + now.system) - (self._before.user + self._before.system),
            "steal_seconds": getattr(now, "steal", 0.0) - getattr(self._before, "steal", 0.0),
        }


def gemm_peak(*, threads: int | None = None, seconds: float = 1.0) -> dict[str, float]:
    """Best GFLOP/s of one product of frozen weights on the CPU, by kernel (`torch-fp32`, `onednn-bf16h` …).

    The best of several sizes and of many repetitions, 2 x rows x inputs x outputs operations each, with casts: the rate
    that training could reach if it were nothing but such products. threads: torch's, None = as they are set.
    """
    import torch

    from automl.packed.kernels import KERNELS, works

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    names = [name for name in KERNELS if works(name)]
    try:
        return {name: _best_rate(name, seconds / len(names)) for name in names}
    finally:
        torch.set_num_threads(before)


def peak_of(peaks: Mapping[str, float], precision: str) -> float:
    """The best of the peaks of a precision (fp32, bf16h), 0 if it was not probed."""
    return max((rate for name, rate in peaks.items() if name.endswith(precision)), default=0.0)


class MemorySampler:
    """Peak of the resident memory of a process and all its descendants, summed, while the block runs.

    Pages that processes share count once for each, as they do in `top`. An instance knows `peak_bytes` and
    `processes` (at the peak) once the block has ended.
    """

    def __init__(self, pid: int, *, interval_seconds: float = 0.25) -> None:
        self.peak_bytes = 0
        self.processes = 0
        self._pid = pid
        self._interval = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            sizes = _resident_bytes(self._pid)
            if sum(sizes) > self.peak_bytes:
                self.peak_bytes, self.processes = sum(sizes), len(sizes)
            if self._ended.wait(self._interval):
                return


def _resident_bytes(pid: int) -> list[int]:
    """Resident memory of the process and of each of its descendants; empty if it has ended."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
    sizes = []
    for process in family:
        try:
            sizes.append(process.memory_info().rss)
        except psutil.Error:
            continue  # it ended while we looked
    return sizes


def _best_rate(kernel: str, seconds: float) -> float:
    import torch

    from automl.packed.kernels import KERNELS

    best = 0.0
    sizes = ((512, 384, 1536), (512, 1536, 384), (1024, 1024, 1024))
    for rows, inputs, outputs in sizes:
        layer = KERNELS[kernel](torch.randn(outputs, inputs), None)
        x = torch.randn(rows, inputs)
        layer.forward(x)
        until = time.perf_counter() + seconds / len(sizes)
        while time.perf_counter() < until:
            start = time.perf_counter()
            layer.forward(x)
            best = max(best, 2e-9 * rows * inputs * outputs / (time.perf_counter() - start))
    return best


def _threads() -> int | None:
    """torch's threads, if torch is loaded: a benchmark that needs none does not load it to say so."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _cpu_flags() -> list[str]:
    """The CPU's features that decide which kernels it runs, as Linux names them; empty elsewhere."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "bf16", "sve")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [flag for flag in wanted if flag in found.split()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
