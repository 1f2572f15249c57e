"""A crew says how far its trainings are, from worker processes as well as from this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.lora import Hyperparameters
from automl.setup.machine import Layout
from automl.setup.packing import Packing, host_settings
from automl.setup.prepare import prepare
from automl.space.load import load_space
from automl.training.runtime import HostSettings
from automl.trial import TrialSpec
from automl.verify.crew import Crew, InlineCrew, WorkerCrew
from tests.sweep.tiny_world import make_world

STEPS = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> HostSettings:
    folder = tmp_path_factory.mktemp("crew")
    spec = load_space(make_world(folder))
    inputs = prepare(spec, shared_cache)
    return host_settings(spec, inputs, Layout(workers=1, threads=1, device="cpu"), Packing(slots=2))


def trainings(count: int) -> list[TrialSpec]:
    hyper = Hyperparameters(rank=2, alpha=4.0, target="qv", batch_size=4)
    return [
        TrialSpec(number=number, params={}, hyper=hyper, seed=number, data_seed=1, steps=STEPS, evaluate_every=STEPS)
        for number in range(count)
    ]


@pytest.mark.parametrize("kind", ["inline", "worker"])
def test_steps_of_all_trainings_are_counted(kind: str, settings: HostSettings) -> None:
    crew: Crew = InlineCrew(settings, check=bool) if kind == "inline" else WorkerCrew(settings, workers=2, check=bool)
    with crew:
        assert crew.steps == 0
        assert crew.untrained()
        seen = [crew.steps for _ in crew.train(trainings(5))]
    assert sorted(seen) == seen
    assert seen[-1] == 5 * STEPS
