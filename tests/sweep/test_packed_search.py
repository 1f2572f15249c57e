"""The main job with the packed host: a curve does not depend on who shares the worker, nor on what befalls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from optuna.trial import FrozenTrial

from automl.execution.base import Host
from automl.execution.dispatch import Dispatcher
from automl.execution.inline import InlineExecutor
from automl.packed.build import obstacle, packed_host
from automl.packed.kernels import works
from automl.setup.hosts import build_host
from automl.setup.machine import Layout
from automl.setup.packing import choose_packing, host_settings
from automl.setup.prepare import Inputs, prepare
from automl.space.load import load_space
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSettings, SearchSpace, SweepSpec
from automl.tasks.base import Batch, LossParts
from automl.tasks.classification import Classification
from automl.training.export import evaluate_export
from automl.training.runtime import HostSettings, load_runtime
from automl.trial import Measurement
from tests.faults.search import open_search
from tests.sweep.tiny_world import make_world

SETTINGS = SearchSettings(
    sampler="random",
    pruner="threshold",
    pruner_options={"upper": 1.0, "n_warmup_steps": 20},
    trials=3,
    steps=30,
    evaluate_every=5,
)
GOOD: list[dict[str, Any]] = [
    {"rank": 2, "learning_rate": 0.03, "batch_size": 8},
    {"rank": 8, "learning_rate": 0.03, "batch_size": 4},
    {"rank": 4, "learning_rate": 0.02, "batch_size": 8},
]
DIVERGES = {"rank": 4, "learning_rate": 1e6, "batch_size": 8}
UNREADABLE = {"rank": 4, "learning_rate": 0.03, "batch_size": 5}
PRUNED = {"rank": 4, "learning_rate": 1e-9, "batch_size": 8}

SPACE = SearchSpace(
    parameters=(
        IntParameter(name="rank", low=1, high=8),
        FloatParameter(name="learning_rate", low=1e-9, high=1e6, log=True),
        CategoricalParameter(name="batch_size", choices=(4, 5, 8)),
    ),
    fixed={"target": "qv"},
)
LAYOUT = Layout(workers=1, threads=1, device="cpu")

HostBuilder = Callable[[HostSettings], Host]
Curves = Mapping[int, list[tuple[int, Mapping[str, float], int]]]


class Fussy(Classification):
    """Cannot read a training batch of five rows."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        if len(batch["labels"]) == 5:
            raise ValueError("row 17 cannot be read")
        return super().loss(model, batch)


class World(NamedTuple):
    """A sweep of four trials over a tiny BERT, prepared."""

    spec: SweepSpec
    inputs: Inputs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> World:
    spec = load_space(make_world(tmp_path_factory.mktemp("packed")))
    return World(spec, prepare(spec, shared_cache))


@pytest.fixture(scope="module")
def settings(world: World) -> HostSettings:
    found = host_settings(world.spec, world.inputs, LAYOUT, choose_packing(world.spec, world.inputs, LAYOUT))
    assert (found.packed, found.capacity) == (True, 4)
    return found


def fussy_host(settings: HostSettings) -> Host:
    runtime = load_runtime(settings)
    return packed_host(settings, replace(runtime, task=Fussy(runtime.task.settings)))


def search(
    folder: Path, settings: HostSettings, configurations: list[dict[str, Any]], *, build: HostBuilder = build_host
) -> tuple[Curves, list[FrozenTrial]]:
    """Run a real study over these configurations; returns every curve, and Optuna's trials."""
    folder.mkdir()
    space = replace(SPACE, enqueue=tuple(configurations))
    with open_search(folder, replace(SETTINGS, trials=len(configurations)), space=space) as opened:
        InlineExecutor().run(Dispatcher(opened.study), partial(build, replace(settings, output=str(folder / "out"))))
        opened.study.close()
        trials = opened.study.optuna.get_trials()
        return {trial.number: curve(opened.store.measurements(trial.number)) for trial in trials}, trials


def curve(measurements: Sequence[Measurement]) -> list[tuple[int, Mapping[str, float], int]]:
    return [(item.step, item.metrics, item.tokens) for item in measurements]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, settings: HostSettings) -> Curves:
    """Three good trials in one pack."""
    curves, _ = search(tmp_path_factory.mktemp("calm") / "four", settings, GOOD)
    assert [[step for step, _, _ in curves[number]] for number in curves] == [[5, 10, 15, 20, 25, 30]] * 3
    return curves


def same(one: Curves, other: Curves) -> bool:
    """To the bit with prepacked kernels; torch's own are chosen by the number of rows."""
    return one == other if works("onednn-fp32") else close(one, other)


def close(one: Curves, other: Curves) -> bool:
    return one.keys() == other.keys() and all(
        (left[0], left[2]) == (right[0], right[2]) and left[1] == pytest.approx(right[1], rel=1e-6)
        for number in one
        for left, right in zip(one[number], other[number], strict=True)
    )


def test_one_slot_and_several_give_the_same_curves(tmp_path: Path, settings: HostSettings, calm: Curves) -> None:
    alone, _ = search(tmp_path / "one", replace(settings, capacity=1), GOOD)
    assert same(alone, calm)


def test_packed_and_solo_give_the_same_curves(tmp_path: Path, settings: HostSettings, calm: Curves) -> None:
    solo, trials = search(tmp_path / "solo", replace(settings, packed=False, capacity=1), GOOD)
    assert close(solo, calm)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3


def test_what_befalls_one_trial_leaves_the_others_alone(tmp_path: Path, settings: HostSettings, calm: Curves) -> None:
    pack = replace(settings, capacity=6)
    curves, trials = search(tmp_path / "six", pack, [*GOOD, DIVERGES, UNREADABLE, PRUNED], build=fussy_host)
    states = [(trial.state.name, trial.user_attrs["stop_reason"]) for trial in trials[:6]]
    assert states[:3] == [("COMPLETE", "finished")] * 3
    assert states[3:] == [("PRUNED", "diverged"), ("FAIL", "error"), ("PRUNED", "pruned")]
    assert "row 17 cannot be read" in trials[4].user_attrs["error"]
    assert len(curves[5]) == 4
    assert same({number: curves[number] for number in calm}, calm)


def test_the_adapter_of_a_packed_trial_measures_the_same_in_peft(
    tmp_path: Path, settings: HostSettings, calm: Curves
) -> None:
    _, trials = search(tmp_path / "one", settings, GOOD[:1])
    (adapter,) = (tmp_path / "one" / "out" / "adapters").iterdir()
    assert trials[0].user_attrs["adapter"] == str(adapter)
    assert evaluate_export(adapter, settings) == pytest.approx(calm[0][-1][1], rel=1e-6)
    solo, _ = search(tmp_path / "solo", replace(settings, packed=False), GOOD[:1])
    assert solo.keys() == {0}
    files = [sorted(path.name for path in folder.iterdir()) for folder in tmp_path.glob("*/out/adapters/*")]
    assert len(files) == 2
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({}, "4 trials packed"),
        ({"slots": 7}, "7 trials packed"),
        ({"slots": 1}, "one trial at a time (slots: 1)"),
        ({"slots": 1, "precision": "bf16h"}, "1 trials packed"),
        ({"precision": "bf16"}, "one trial at a time (precision bf16 cannot be packed on a CPU, bf16h can)"),
    ],
)
def test_packed_unless_something_speaks_against_it(world: World, run: dict[str, Any], expected: str) -> None:
    spec = replace(world.spec, run=replace(world.spec.run, **run), search=replace(world.spec.search, trials=9))
    assert str(choose_packing(spec, world.inputs, LAYOUT)) == expected


def test_a_pack_is_no_larger_than_a_workers_share_of_the_trials(world: World) -> None:
    layout = replace(LAYOUT, workers=2)
    assert choose_packing(world.spec, world.inputs, layout).slots == 2


def test_a_model_that_cannot_be_packed_is_trained_solo(world: World) -> None:
    inputs = replace(world.inputs, obstacle=obstacle(torch.nn.Linear(2, 2), ["lora"]))
    packing = choose_packing(world.spec, inputs, LAYOUT)
    assert (packing.is_packed, str(packing)) == (False, "one trial at a time (Linear cannot be packed)")
    assert obstacle(world.inputs.model, ["lora", "adalora"]) == "method adalora cannot be packed"
