"""Both step benchmarks, with tiny models: the oracle comes first, and nothing is claimed without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu_packed, packed_qlora, packed_step
from benchmarks.packed_step import PEFT, QUICK, VARIANTS, measure, of_variant, rows_of
from benchmarks.plain_peft import Exactness, exactness
from benchmarks.shapes import build, frozen_flops, mixed_trials, workload

Document = Callable[[Callable[..., int], list[str]], dict[str, Any]]


@pytest.fixture(autouse=True)
def threads() -> None:
    torch.set_num_threads(1)


def test_packed_step_states_exactness_and_times(document: Document) -> None:
    found = document(packed_step.main, ["--quick", "--slots", "1,2", "--settings", "tiny-bert"])
    (result,) = found["results"]
    assert all(proof["holds"] for proof in result["exactness"])
    assert set(result["arms"]) == {
        "PEFT",
        *(f"packed {name} K={count}" for name in ("fp32", "bf16h") for count in (1, 2)),
    }
    assert all(len(arm["cpu_seconds"]) == 2 for arm in result["arms"].values())
    assert result["arms"]["PEFT"]["ratio_to_peft"] == 1.0
    assert found["gemm_peak_gflops"]
    assert {"steal_seconds", "load"} <= found["disturbance"].keys()


def test_every_variant_is_exact_and_held_against_itself_alone(document: Document) -> None:
    options = ["--quick", "--slots", "2", "--settings", "tiny-bert", "--precisions", "fp32", "--variants", "all"]
    found = document(packed_step.main, options)
    (result,) = found["results"]
    assert [(proof["holds"], proof["trials"]) for proof in result["exactness"]] == [(True, 4 + len(VARIANTS))]
    peft = {of_variant(variant, PEFT) for variant in VARIANTS}
    assert set(result["arms"]) == peft | {of_variant(variant, "packed fp32 K=2") for variant in VARIANTS}
    assert all(result["arms"][name]["ratio_to_peft"] == 1.0 for name in peft)


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        packed_step.main(["--quick", "--variants", "lora,dora"])
    assert "--variants: 'dora' is not known; known are lora, rslora" in capsys.readouterr().err


def test_packed_qlora_states_exactness_memory_and_times(document: Document) -> None:
    found = document(packed_qlora.main, ["--quick", "--slots", "2", "--steps", "2"])
    (result,) = found["results"]
    assert result["exactness"]["holds"]
    assert 0.5 < result["bytes_per_weight"] <= 0.60
    assert set(result["arms"]) >= {packed_qlora.PEFT, "packed fp32 K=2", "packed bf16h K=2"}
    assert all(len(arm["cpu_seconds"]) == 2 for arm in result["arms"].values())


def test_no_time_is_measured_without_exactness(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Exactness(precision="fp32", kernel="x", trials=1, steps=1, difference=1e-3, tolerance=1e-6)
    result = measure(
        QUICK[0], [wrong], slots=(1,), precisions=("fp32",), rounds=1, seconds=0.0, hyper={"rank": 2}, peaks={}
    )
    assert result["arms"] == {}
    assert list(rows_of(result)) == []
    assert "FAILS: no ratio is given" in capsys.readouterr().out


def test_gpu_packed_runs_on_a_cpu_as_a_smoke_test(document: Document) -> None:
    found = document(gpu_packed.main, ["--quick", "--causes"])
    (result,) = found["results"]
    packs = {f"{cause} K={count}" for cause in gpu_packed.CAUSES for count in (1, 4)}
    assert set(result["arms"]) == {"PEFT, one trial", *packs}
    assert {proof["precision"] for proof in result["exactness"]} == {"fp32", "bf16"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_packed_refuses_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_packed.main([]) == 2
    assert "--quick" in capsys.readouterr().out


def test_the_oracle_notices_another_seed() -> None:
    model, load = build("tiny-llama"), workload("tiny-llama", tokens=8)
    trials = mixed_trials(2)[:2]
    proof = exactness(model, load, trials, steps=3)
    assert proof.holds
    assert 0.0 <= proof.difference <= 1e-6
    assert exactness(model, load, trials, precision="bf16h", steps=3).difference > proof.difference


def test_frozen_operations_are_counted_by_hand() -> None:
    # Two layers of width 32: four projections of 32 x 32 and two of 32 x 64.
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert frozen_flops(build("tiny-bert", device="meta"), 10) == 4 * weights * 10
    assert frozen_flops(build("tiny-bert", device="meta"), 10, backward=False) == 2 * weights * 10
