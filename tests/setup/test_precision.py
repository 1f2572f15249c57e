"""`precision: auto` is decided once and kept."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from automl.packed.kernels import choose_kernel, choose_precision, works
from automl.provenance import processor
from automl.setup.machine import Layout
from automl.setup.precision import is_another_cpu, settle_precision
from automl.setup.prepare import Inputs, prepare
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from tests.fresh import run_python
from tests.sweep.tiny_world import make_world

CPU = Layout(workers=1, threads=1, device="cpu")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    loaded = load_space(make_world(tmp_path_factory.mktemp("precision")))
    return replace(loaded, run=replace(loaded.run, precision="auto"))


@pytest.fixture(scope="module")
def inputs(spec: SweepSpec, shared_cache: Path) -> Inputs:
    return prepare(spec, shared_cache)


def test_what_the_first_run_recorded_holds(spec: SweepSpec, inputs: Inputs) -> None:
    for recorded in ("fp32", "bf16h"):
        assert settle_precision(spec, inputs, CPU, {"precision": recorded}).run.precision == recorded


ON_AN_OLD_CPU = """
import logging, sys
from pathlib import Path

import torch

from automl.packed.kernels import choose_kernel, works
from automl.space.load import load_space
from automl.setup.machine import Layout
from automl.setup.precision import is_another_cpu, settle_precision

logging.basicConfig(level=logging.INFO, format="%(message)s")
cpu = Layout(workers=1, threads=1, device="cpu")
spec = load_space(Path(sys.argv[1]))
before = {"precision": "bf16h", "kernel": "onednn-bf16h"}
print(works("onednn-bf16h"), choose_kernel("fp32", torch.device("cpu")), choose_kernel("bf16h", torch.device("cpu")))
print(settle_precision(spec, None, cpu, before).run.precision)
"""


def test_a_cpu_without_bfloat16_goes_on_in_fp32_with_its_own_kernel(tmp_path: Path) -> None:
    space = make_world(tmp_path)
    space.write_text(space.read_text().replace("precision: fp32", "precision: auto"))
    # A process of its own: oneDNN reads the limit once, when the first product is made.
    found = run_python("-c", ON_AN_OLD_CPU, space, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert found.returncode == 0, found.stderr
    fp32 = "onednn-fp32" if works("onednn-fp32") else "torch-fp32"
    assert found.stdout.split() == ["False", fp32, "torch-bf16h", "fp32"]
    # What a person reads first is the consequence in numbers, not the exception of a kernel.
    first, *others = found.stderr.splitlines()
    assert re.match(r"the study began in precision bf16h on another CPU; .* takes [\d.]+ times as long", first)
    assert others == []


def test_the_same_cpu_is_not_asked_again() -> None:
    here = {"precision": "bf16h", "kernel": choose_kernel("bf16h", torch.device("cpu")), "processor": processor()}
    assert not is_another_cpu(here)
    assert is_another_cpu({**here, "processor": "another"})
    assert is_another_cpu({**here, "kernel": "another"})
    assert not is_another_cpu({"precision": "bf16h"})  # of a version that did not write it down


def test_a_named_precision_stays(spec: SweepSpec, inputs: Inputs) -> None:
    named = replace(spec, run=replace(spec.run, precision="bf16h"))
    assert settle_precision(named, inputs, CPU, {"precision": "fp32"}).run.precision == "bf16h"


def test_the_probe_decides_for_packs_on_a_cpu(spec: SweepSpec, inputs: Inputs) -> None:
    chosen = settle_precision(spec, inputs, CPU).run.precision
    assert chosen == choose_precision(torch.device("cpu"), threads=1)


def test_trials_that_are_not_packed_are_trained_in_fp32(spec: SweepSpec, inputs: Inputs) -> None:
    one_by_one = replace(spec, run=replace(spec.run, slots=1))
    assert settle_precision(one_by_one, inputs, CPU).run.precision == "fp32"
    assert settle_precision(spec, replace(inputs, obstacle="a reason"), CPU).run.precision == "fp32"


def test_a_gpu_means_bf16(spec: SweepSpec, inputs: Inputs) -> None:
    assert settle_precision(spec, inputs, replace(CPU, device="cuda")).run.precision == "bf16"
    full = replace(spec, space=replace(spec.space, fixed={**spec.space.fixed, "method": "full"}))
    assert settle_precision(full, inputs, replace(CPU, device="cuda")).run.precision == "fp32"
