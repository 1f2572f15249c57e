"""A plan says when packing gains little, and a worker takes no more trials than its memory has room for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.packed.build import build_packed_host
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.sweep.ground import Ground, prepare
from automl.sweep.layout import Layout
from automl.sweep.packing import Packing, choose_packing, host_settings
from automl.sweep.payoff import doubts, shared_depth
from automl.training.bench import HostSettings
from tests.sweep.tiny_world import make_world

LAYOUT = Layout(workers=1, threads=1, device="cpu")
PACKED = Packing(slots=4)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[SweepSpec, Ground]:
    spec = load_space(make_world(tmp_path_factory.mktemp("payoff")))
    return spec, prepare(spec, shared_cache)


def fixed(ground: Ground, **values: Any) -> Ground:
    return replace(ground, space=replace(ground.space, fixed={**ground.space.fixed, **values}))


def test_nothing_is_said_where_packing_pays(sweep: tuple[SweepSpec, Ground]) -> None:
    spec, ground = sweep
    assert list(doubts(spec, ground, LAYOUT, PACKED)) == []
    assert list(doubts(spec, ground, replace(LAYOUT, device="cuda"), PACKED)) == []


def test_many_tokens_fill_a_gpu_with_one_trial(sweep: tuple[SweepSpec, Ground]) -> None:
    spec, ground = sweep
    (text,) = doubts(spec, fixed(ground, batch_size=1024), replace(LAYOUT, device="cuda"), PACKED)
    assert "tokens, which keep a GPU busy alone" in text
    assert list(doubts(spec, fixed(ground, batch_size=1024), LAYOUT, PACKED)) == []


def test_one_slot_for_many_trials_is_for_want_of_memory(sweep: tuple[SweepSpec, Ground]) -> None:
    spec, ground = sweep
    assert "memory for one trial at a time" in next(doubts(spec, ground, LAYOUT, Packing(slots=1)))
    assert list(doubts(spec, ground, LAYOUT, Packing(slots=1, solo="slots: 1"))) == []


def test_targets_in_the_upper_layers_share_a_prefix_that_is_not_shared(tmp_path: Path, shared_cache: Path) -> None:
    space = make_world(tmp_path)
    text = space.read_text(encoding="utf-8").replace("target: qv", "target: top")
    space.write_text(text + 'targets: {top: [".*layer\\\\.1\\\\..*query"]}\n', encoding="utf-8")
    spec = load_space(space)
    ground = prepare(spec, shared_cache)
    assert shared_depth(ground) == pytest.approx(6 / 14)
    assert list(doubts(spec, ground, LAYOUT, PACKED)) == []
    upper = replace(ground, space=replace(ground.space, targets={"top": (r".*layer\.1\..*output\.dense",)}))
    upper = replace(upper, derive=type(ground.derive)(ground.model, upper.space.targets))
    assert "no target reaches below the upper" in next(doubts(spec, upper, LAYOUT, PACKED))


def test_a_worker_takes_as_many_trials_as_it_has_memory_for(sweep: tuple[SweepSpec, Ground], tmp_path: Path) -> None:
    spec, ground = sweep
    settings = host_settings(spec, ground, LAYOUT, choose_packing(spec, ground, LAYOUT))
    settings = replace(settings, output=str(tmp_path))
    assert settings.largest is not None
    assert capacity(settings) == settings.capacity == 4
    assert capacity(replace(settings, tokens=10**9)) == 1
    assert capacity(replace(settings, workers=10**9, threads=1)) == 4


def capacity(settings: HostSettings) -> int:
    host = build_packed_host(settings)
    host.shutdown()
    return host.capacity
