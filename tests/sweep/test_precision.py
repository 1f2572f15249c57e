"""`precision: auto` is decided once and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_world import make_world

from automl.packed.kernels import choose_precision
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.sweep.ground import Ground, prepare
from automl.sweep.layout import Layout
from automl.sweep.precision import settle_precision

CPU = Layout(workers=1, threads=1, device="cpu")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    loaded = load_space(make_world(tmp_path_factory.mktemp("precision")))
    return replace(loaded, run=replace(loaded.run, precision="auto"))


@pytest.fixture(scope="module")
def ground(spec: SweepSpec, shared_cache: Path) -> Ground:
    return prepare(spec, shared_cache)


def test_what_the_first_run_recorded_holds(spec: SweepSpec, ground: Ground) -> None:
    for recorded in ("fp32", "bf16h"):
        assert settle_precision(spec, ground, CPU, {"precision": recorded}).run.precision == recorded


def test_a_named_precision_stays(spec: SweepSpec, ground: Ground) -> None:
    named = replace(spec, run=replace(spec.run, precision="bf16h"))
    assert settle_precision(named, ground, CPU, {"precision": "fp32"}).run.precision == "bf16h"


def test_the_probe_decides_for_packs_on_a_cpu(spec: SweepSpec, ground: Ground) -> None:
    chosen = settle_precision(spec, ground, CPU).run.precision
    assert chosen == choose_precision(torch.device("cpu"), threads=1)


def test_trials_that_are_not_packed_are_trained_in_fp32(spec: SweepSpec, ground: Ground) -> None:
    one_by_one = replace(spec, run=replace(spec.run, slots=1))
    assert settle_precision(one_by_one, ground, CPU).run.precision == "fp32"
    assert settle_precision(spec, replace(ground, obstacle="a reason"), CPU).run.precision == "fp32"


def test_a_gpu_means_bf16(spec: SweepSpec, ground: Ground) -> None:
    assert settle_precision(spec, ground, replace(CPU, device="cuda")).run.precision == "bf16"
