"""The same search, packed and one trial at a time with PEFT: the same trials, curves, and winner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automl.space.load import load_space
from benchmarks.packed_solo import Outcome, distance, run
from tests.sweep.tiny_world import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("alike"), trials=6, steps=20)


def search(world: Path, sampler: str, slots: int) -> Outcome:
    spec = load_space(world)
    fixed = replace(spec.run, precision="fp32", slots=slots)
    return run("", replace(spec, search=replace(spec.search, sampler=sampler), run=fixed))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["random", pytest.param("qmc", marks=pytest.mark.full)])
def test_packed_and_solo_searches_find_the_same(
    world: Path, sampler: str, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOML_CACHE", str(shared_cache))
    packed, solo = (search(world, sampler, slots) for slots in (3, 1))
    assert packed.params == solo.params
    assert len(packed.curves) == 6 * 4
    assert distance(packed, solo, "loss") < 1e-6
    assert distance(packed, solo, "accuracy") == 0.0
    assert (packed.best, packed.value) == (solo.best, solo.value)
    assert packed.idle is not None
