"""Whole sweeps: the same work for every arm, and times read off what each has left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.space.load import load_space
from benchmarks import sweep_throughput
from benchmarks.sweep_arms import ArmRun, TrialTimes, check_work, run_arm
from benchmarks.sweep_throughput import probe
from benchmarks.sweep_world import Work, World, configurations, make_world

Document = Callable[[Callable[..., int], list[str]], dict[str, Any]]

WORK = Work(
    name="test", trials=2, steps=4, evaluate_every=2, evaluation_rows=20, batch_size=4, max_length=16, train_rows=40
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), WORK, quick=True)


def times(number: int, started: float, ended: float, process: int) -> TrialTimes:
    return TrialTimes(
        number=number,
        started=started,
        ended=ended,
        train_seconds=1.0,
        evaluation_seconds=0.5,
        process=process,
        final_loss=1.0,
    )


def test_configurations_depend_on_the_seed_alone() -> None:
    assert list(configurations(3, 1)) == list(configurations(5, 1))[:3]
    assert list(configurations(3, 1)) != list(configurations(3, 2))
    assert all(
        2 <= each["rank"] <= 32 and each["alpha"] == each["rank"] * each["alpha_ratio"]
        for each in configurations(50, 1)
    )


def test_the_space_file_holds_the_configurations_of_the_baselines(world: World, tmp_path: Path) -> None:
    world.write_space(tmp_path / "space.yaml", {"executor": "inline"})
    spec = load_space(tmp_path / "space.yaml")
    document = world.for_baselines(workers=2, threads=1, output=tmp_path)
    assert [each["rank"] for each in spec.space.enqueue] == [each["rank"] for each in document["configurations"]]
    assert spec.search.pruner == "none"
    assert spec.search.trials == len(document["configurations"])
    assert spec.task.data.files["train"] == document["train"]


def test_the_probe_proves_exactness_on_the_world_itself(world: World) -> None:
    found = probe(world, world.folder)
    assert all(proof.holds for proof in found.proofs)
    assert found.trial_flops > 0
    assert set(found.evaluation_seconds) == {"fp32", "bf16h"}


def test_figures_follow_from_starts_and_ends() -> None:
    # Two workers, each with one trial at a time: 0-4 and 5-9 on the first, 1-6 on the second.
    trials = (times(0, 0.0, 4.0, process=1), times(1, 1.0, 6.0, process=2), times(2, 5.0, 9.0, process=1))
    run = ArmRun(arm="x", wall_seconds=12.0, peak_bytes=1, processes=1, trials=trials, ground=None)
    assert run.workers == 2
    assert run.most_resident == 2
    assert run.mean_resident == pytest.approx(13 / 9)
    assert run.first_start == 0.0
    assert run.steady_seconds == 8.0


def test_an_arm_that_did_other_work_is_refused() -> None:
    done = [(times(0, 0.0, 4.0, process=1), 2), (times(1, 1.0, 6.0, process=2), 2)]
    check_work("x", WORK, done)
    for other in (done[:1], [done[0], (done[1][0], 1)], [*done, done[1]]):
        with pytest.raises(RuntimeError, match="x did other work"):
            check_work("x", WORK, other)


def test_a_baseline_does_the_work_as_a_command_of_its_own(world: World, tmp_path: Path) -> None:
    run = run_arm("optuna-trainer", world, tmp_path / "run", workers=1, threads=1)
    assert sorted(trial.number for trial in run.trials) == [0, 1]
    assert run.peak_bytes > 100 * 2**20
    assert 0 < run.first_start < run.wall_seconds


@pytest.mark.slow
@pytest.mark.full  # its parts are tested above, and what it starts by the tests of the executors
@pytest.mark.ray
@pytest.mark.skipif(" " in sys.prefix, reason="the arms with plain Ray cannot start from a path with blanks (ray 2.60)")
def test_the_whole_benchmark_through_ray(document: Document) -> None:
    found = document(sweep_throughput.main, ["--quick", "--trials", "2", "--arms", "ours-inline,tune-fresh,tune-reuse"])
    (result,) = found["results"]
    assert set(result["arms"]) == {"ours-inline", "tune-fresh", "tune-reuse"}
    assert len(found["runs"]) == 3
