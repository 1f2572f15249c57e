"""How benchmarks measure: order of rounds, medians, memory, the machine, tables."""

from __future__ import annotations

import mmap
import os
import time

import pytest

from benchmarks.measure import (
    MemorySampler,
    Timing,
    gemm_peak,
    interleaved,
    machine,
    peak_of,
    repetitions,
    spread,
    timed,
)
from benchmarks.report import table


def test_arms_take_turns_and_the_second_half_runs_backwards() -> None:
    calls: list[str] = []
    arms = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "ab"}
    found = interleaved(arms, 4)
    assert "".join(calls) == "abab" + "baba"
    assert found == {"a": [1, 3, 6, 8], "b": [2, 4, 5, 7]}


def test_a_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert spread([3.0, 1.0, 2.0]).text() == "2.0 (1.0–3.0)"
    with pytest.raises(ValueError, match="no rounds"):
        spread([])


def test_short_work_is_repeated_and_long_work_is_not() -> None:
    assert repetitions(0.01, 1.0) == 100
    assert repetitions(5.0, 1.0) == 1
    assert repetitions(0.0, 1.0) == 200


def test_sleeping_costs_wall_time_and_no_cpu_time() -> None:
    found = timed(lambda: time.sleep(0.1)).per(2)
    assert isinstance(found, Timing)
    assert found.wall >= 0.05
    assert found.cpu < 0.04


def test_the_sampler_sees_what_was_allocated() -> None:
    with MemorySampler(os.getpid(), interval_seconds=0.01) as before:
        time.sleep(0.05)
    with MemorySampler(os.getpid(), interval_seconds=0.01) as sampler:
        block = mmap.mmap(-1, 64 * 2**20)  # not from what the process has freed and kept
        block[::4096] = b"x" * len(block[::4096])
        until = time.monotonic() + 60
        while sampler.peak_bytes - before.peak_bytes <= 48 * 2**20 and time.monotonic() < until:
            time.sleep(0.01)
    assert sampler.peak_bytes - before.peak_bytes > 48 * 2**20
    assert sampler.processes >= 1


def test_the_machine_is_described_without_paths() -> None:
    here = machine()
    assert {"commit", "torch", "ray", "processor", "cpu_flags", "load", "usable_cpus"} <= here.keys()
    assert os.getcwd() not in str(here)


def test_the_gemm_probe_knows_both_precisions() -> None:
    peaks = gemm_peak(threads=1, seconds=0.1)
    assert peak_of(peaks, "fp32") > 0
    assert peak_of(peaks, "bf16h") > 0
    assert peak_of(peaks, "fp8") == 0


def test_tables_align_numbers_to_the_right() -> None:
    assert table([{"arm": "a", "ms": "9.5"}, {"arm": "bcd", "ms": "10.5"}]).split("\n") == [
        "arm    ms",
        "---  ----",
        "a     9.5",
        "bcd  10.5",
    ]
    assert table([]) == "(nothing measured)"
