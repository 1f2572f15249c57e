"""The check of a machine with a GPU: its parts run on a CPU, and one that ends badly stops no other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_packed
from benchmarks.gpu_check import PARTS, QUICK, Part, check, factors, reached
from benchmarks.gpu_packed import Cell, arms_of
from benchmarks.measure import interleaved

Document = Callable[[Callable[..., int], list[str]], dict[str, Any]]


def test_every_part_runs_on_a_cpu(document: Document) -> None:
    found = document(gpu_check.main, ["--quick"])
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(QUICK, "ok")
    results = {name: part["result"] for name, part in found["parts"].items()}
    for name in ("exact fp32", "exact bf16", "exact nf4"):
        assert set(results[name]["models"]) == {"tiny-llama", "tiny-qwen", "tiny-bert"}
    assert not any(each["objection"] for each in results["exact fp32"]["models"].values())
    assert results["search"]["packing"]["slots"] > 1
    assert results["search killed"]["measurements"]["when_killed"] < 16
    assert results["search killed"]["measurements"]["at_the_end"] == 16
    assert set(found["factors"]) == {"tiny_batch", "saturating_batch", "pruning"}
    assert found["factors"]["pruning"] >= 1
    assert set(found["factors"]["tiny_batch"]["0.1b"]) == {"packed K=1", "packed K=4"}


def test_a_part_that_ends_badly_says_how_and_stops_no_other() -> None:
    faults = "tests.benchmarks.gpu_faults"
    names = ["raises", "lacks", "asks_for_too_much", "dies", "denies", "agrees"]
    parts = [Part(name, name, 120.0, module=faults) for name in names]
    parts.insert(3, Part("hangs", "hangs", 3.0, module=faults))
    ends = {each.part.name: each for each in check(parts, quick=True, until=time.monotonic() + 600)}
    assert {name: each.status for name, each in ends.items()} == {
        "raises": "failed",
        "lacks": "missing",
        "asks_for_too_much": "out of memory",
        "hangs": "timed out",
        "dies": "died",
        "denies": "failed",
        "agrees": "ok",
    }
    assert ends["raises"].why == "ValueError: of two minds"
    assert "no_such_package" in ends["lacks"].why
    assert "SIGSEGV" in ends["dies"].why
    assert ends["hangs"].result == {"so": "far"}
    assert ends["denies"].as_json()["result"]["difference"] == 0.5


def test_parts_for_which_no_time_is_left_are_named() -> None:
    (end,) = check(PARTS[:1], quick=True, until=time.monotonic())
    assert (end.status, end.why) == ("not run", "the time of the whole check was used up")


def test_all_parts_fit_into_the_time_if_those_that_measure_none_run_side_by_side() -> None:
    timed = sum(part.seconds for part in PARTS if part.is_timed)
    untimed = max(part.seconds for part in PARTS if not part.is_timed)
    assert timed + untimed <= 60 * gpu_check.MINUTES
    assert set(QUICK) <= {part.name for part in PARTS}


def test_factors_are_read_off_and_never_multiplied() -> None:
    arms = {"PEFT, one trial": {"ratio_to_peft": 1.0}, "packed K=32": {"ratio_to_peft": 9.5}}
    short = {"packed K=8": {"out_of_memory": "no room"}}
    found = factors(
        {
            "0.5b": {"tiny_batch": {"arms": arms}, "saturating_batch": {"arms": short}},
            "search": {"pruning": 2.5},
            "8b": {},
        }
    )
    assert found == {
        "tiny_batch": {"0.5b": {"packed K=32": 9.5}},
        "saturating_batch": {"0.5b": {"packed K=8": None}},
        "pruning": 2.5,
    }
    measured = {row["x PEFT"]: row["measured"] for row in reached(found)}
    assert measured["0.5b, tiny batch, K = 32"] == "9.50"
    assert measured["0.5b, saturating batch, K = 8"] == "-"


def test_an_arm_without_memory_says_so_and_has_no_time() -> None:
    torch.set_num_threads(1)
    hyper = {"target": "all-linear", "rank": 2, "dropout": 0.0}
    cell = Cell("tiny-llama", 8, (2**40, 1), device="cpu", precision="fp32", seconds=0.0, hyper=hyper)
    arms = arms_of(cell, interleaved(cell.runs, 2), 1.0)
    assert arms[f"packed K={2**40}"] == {"out_of_memory": f"there is no memory for a bank of {2**40} slots"}
    assert len(arms["packed K=1"]["wall_seconds"]) == len(arms[gpu_packed.PEFT]["wall_seconds"]) == 2


def test_memory_that_a_library_lacks_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hyper = {"target": "all-linear", "rank": 2, "dropout": 0.0}
    cell = Cell("tiny-llama", 8, (), device="cpu", precision="fp32", seconds=0.0, hyper=hyper)

    def fails(why: str) -> None:
        raise RuntimeError(why)

    monkeypatch.setattr(cell, "_step_alone", lambda: fails("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert cell.runs[gpu_packed.PEFT]() is None
    assert "CUBLAS_STATUS_ALLOC_FAILED" in cell.out_of_memory.pop(gpu_packed.PEFT)
    monkeypatch.setattr(cell, "_step_alone", lambda: fails("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cell.runs[gpu_packed.PEFT]()


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--only", "9b"])
    assert "'9b' is not known; known are device" in capsys.readouterr().err
