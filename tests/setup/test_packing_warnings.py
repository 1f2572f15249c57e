"""A plan says when packing gains little, and a worker takes no more trials than its memory has room for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.packed.build import build_packed_host
from automl.setup.machine import Layout
from automl.setup.packing import Packing, choose_packing, host_settings
from automl.setup.plan import Corner, packing_warnings, shared_depth
from automl.setup.prepare import Inputs, prepare
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.training.runtime import HostSettings
from tests.sweep.tiny_world import make_world

LAYOUT = Layout(workers=1, threads=1, device="cpu")
PACKED = Packing(slots=4)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[SweepSpec, Inputs]:
    spec = load_space(make_world(tmp_path_factory.mktemp("payoff")))
    return spec, prepare(spec, shared_cache)


def fixed(inputs: Inputs, **values: Any) -> Inputs:
    return replace(inputs, space=replace(inputs.space, fixed={**inputs.space.fixed, **values}))


def test_nothing_is_said_where_packing_pays(sweep: tuple[SweepSpec, Inputs]) -> None:
    spec, inputs = sweep
    assert list(packing_warnings(spec, inputs, LAYOUT, PACKED)) == []
    assert list(packing_warnings(spec, inputs, replace(LAYOUT, device="cuda"), PACKED)) == []


def test_many_tokens_fill_a_gpu_with_one_trial(sweep: tuple[SweepSpec, Inputs]) -> None:
    spec, inputs = sweep
    (text,) = packing_warnings(spec, fixed(inputs, batch_size=1024), replace(LAYOUT, device="cuda"), PACKED)
    assert "tokens, which keep a GPU busy alone" in text
    assert list(packing_warnings(spec, fixed(inputs, batch_size=1024), LAYOUT, PACKED)) == []


def test_one_slot_for_many_trials_is_for_want_of_memory(sweep: tuple[SweepSpec, Inputs]) -> None:
    spec, inputs = sweep
    assert "memory for one trial at a time" in next(packing_warnings(spec, inputs, LAYOUT, Packing(slots=1)))
    assert list(packing_warnings(spec, inputs, LAYOUT, Packing(slots=1, solo="slots: 1"))) == []


def test_targets_in_the_upper_layers_share_a_prefix_that_is_not_shared(tmp_path: Path, shared_cache: Path) -> None:
    space = make_world(tmp_path)
    text = space.read_text(encoding="utf-8").replace("target: qv", "target: top")
    space.write_text(text + 'targets: {top: [".*layer\\\\.1\\\\..*query"]}\n', encoding="utf-8")
    spec = load_space(space)
    inputs = prepare(spec, shared_cache)
    assert shared_depth(inputs) == pytest.approx(6 / 14)
    assert list(packing_warnings(spec, inputs, LAYOUT, PACKED)) == []
    upper = replace(inputs, space=replace(inputs.space, targets={"top": (r".*layer\.1\..*output\.dense",)}))
    upper = replace(upper, derive=type(inputs.derive)(inputs.model, upper.space.targets))
    assert "no target reaches below the upper" in next(packing_warnings(spec, upper, LAYOUT, PACKED))


def test_a_worker_takes_as_many_trials_as_it_has_memory_for(sweep: tuple[SweepSpec, Inputs], tmp_path: Path) -> None:
    spec, inputs = sweep
    settings = host_settings(spec, inputs, LAYOUT, choose_packing(spec, inputs, LAYOUT))
    settings = replace(settings, output=str(tmp_path))
    assert settings.largest is not None
    assert capacity(settings) == settings.capacity == 4
    assert capacity(replace(settings, tokens=10**9)) == 4  # in parts
    assert capacity(replace(settings, tokens=10**9, whole_batches=True)) == 1
    assert capacity(replace(settings, workers=10**9, threads=1)) == 4


def capacity(settings: HostSettings) -> int:
    host = build_packed_host(settings)
    host.shutdown()
    return host.capacity


def test_a_corner_is_its_target_and_rank_where_it_has_them() -> None:
    def said(target: str | None, rank: int | None) -> str:
        return str(Corner(method="ia3", target=target, rank=rank, trainable_params=1, bytes=1))

    assert [said("qv", 8), said("qv", None), said(None, None)] == ["qv           rank    8", "qv", "ia3"]
