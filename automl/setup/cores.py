"""How the cores of a machine are best shared out among workers, found out by a short measurement."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import torch

from automl.packed.kernels import KERNELS, choose_kernel

BOUTS = 2
BOUT_SECONDS = 0.06
"""Three splits take less than half a second: a search of minutes can spare that."""

CLEARLY = 1.15
"""How many times faster a split with fewer workers has to be. Only half of a step are the products that are measured
here; the rest gains less from the threads of one worker, and everything from a worker of its own."""

_ROWS, _WIDTH = 512, 768

Split = tuple[int, int]
"""Workers, and threads of each."""


def splits(cores: int, most: int) -> list[Split]:
    """1, 2, 4 … workers, at most `most`, with equal parts of the cores. The most workers come first."""
    counts = [2**power for power in range(cores.bit_length()) if 2**power <= min(cores, most)]
    return [(workers, cores // workers) for workers in reversed(counts)]


def measure(candidates: Sequence[Split]) -> dict[Split, float]:
    """Products with a frozen weight, forward and backward, per second of all workers together; best of the bouts.

    The workers are threads of this process. The number of torch's threads is put back afterwards.
    """
    before = torch.get_num_threads()
    try:
        bouts = [{split: _rate(*split) for split in candidates} for _ in range(BOUTS)]
    finally:
        torch.set_num_threads(before)
    return {split: max(bout[split] for bout in bouts) for split in candidates}


def choose(rates: Mapping[Split, float]) -> Split:
    """The split with the most workers, unless one with fewer is clearly faster. rates: the most workers first."""
    chosen, best = next(iter(rates.items()))
    for split, rate in rates.items():
        if rate > CLEARLY * best:
            chosen, best = split, rate
    return chosen


def _rate(workers: int, threads: int) -> float:
    barrier = threading.Barrier(workers)
    rates: list[float] = []
    bodies = [threading.Thread(target=lambda: rates.append(_work(threads, barrier))) for _ in range(workers)]
    for body in bodies:
        body.start()
    for body in bodies:
        body.join()
    return sum(rates)


def _work(threads: int, barrier: threading.Barrier) -> float:
    """Products per second of one worker, once all of them have warmed up."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    kernel = KERNELS[choose_kernel("fp32", torch.device("cpu"))](torch.randn(_WIDTH, _WIDTH, generator=generator), None)
    rows = torch.randn(_ROWS, _WIDTH, generator=generator)
    kernel.backward(kernel.forward(rows))
    barrier.wait()
    began, products = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < BOUT_SECONDS:
        kernel.backward(kernel.forward(rows))
        products += 1
    return products / elapsed
