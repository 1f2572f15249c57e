"""The contract of executors, over every implementation and both sources of trials, with hosts that train by formula:
a real study in a real database, and the trainings of a verification.

Ray is started once for all of these tests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from automl.errors import SearchError
from automl.execution import make_executor
from automl.execution.base import Executor, HostFactory
from automl.execution.dispatch import Dispatcher
from automl.execution.ray_tune import RayExecutor
from automl.testing import ExecutorContract, ProcessExecutorContract
from automl.testing.formula import Fault, FormulaHost, curve
from automl.trial import Examined, Metrics
from automl.verify.plan import Training, all_trainings, trial_spec
from automl.verify.protocol import DIVERGED, Scores
from automl.verify.trainings import Trainings
from tests.verify.verify_cases import arm, make_plan


@pytest.fixture(scope="module")
def ray_executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    with RayExecutor(workers=2, folder=tmp_path_factory.mktemp("tune")) as executor:
        yield executor


class TestInline(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return make_executor("inline")


@pytest.mark.ray
class TestRay(ProcessExecutorContract):
    @pytest.fixture
    def executor(self, ray_executor: RayExecutor) -> Executor:
        ray_executor.workers = 2
        return ray_executor

    @pytest.fixture
    def alone(self, ray_executor: RayExecutor) -> Executor:
        ray_executor.workers = 1
        return ray_executor


INLINE = pytest.param(("inline", 1), id="inline")
RAY_ONE = pytest.param(("ray", 1), id="ray", marks=pytest.mark.ray)
RAY_TWO = pytest.param(("ray", 2), id="ray", marks=pytest.mark.ray)


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Executor:
    """The executor of that name with so many workers; the one over Ray keeps its cluster between tests."""
    name, workers = request.param
    if name == "inline":
        return make_executor("inline")
    ray: RayExecutor = request.getfixturevalue("ray_executor")
    ray.workers = workers
    return ray


def host(folder: Path, **options: object) -> HostFactory:
    return functools.partial(FormulaHost, str(folder / "slots"), ledger=str(folder / "ledger"), **options)  # type: ignore[arg-type]


# The trainings of a verification are another source of trials: no study, no Optuna.

PLAN = make_plan([arm("trial-3", "finalist"), arm("default", "default", rates=(2e-4,))], seeds=3, metric="loss")


class Verified(NamedTuple):
    """What has been scored, in this order, over all runs."""

    scores: Scores
    made: list[Training]


def verify(executor: Executor, folder: Path, found: Verified, *, exchanges: int = 0, **options: object) -> None:
    """Train what is missing; with `exchanges`, stop after so many."""

    def keep(training: Training, metrics: Metrics, examined: Sequence[Examined]) -> None:
        found.scores.add(training, metrics)
        found.made.append(training)

    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == exchanges:
            dispatcher.stop("SIGTERM")

    trainings = Trainings(PLAN, found.scores, "test", number=1, keep=keep, workers=2, slots=2)
    dispatcher = Dispatcher(trainings, on_exchange=count)
    executor.run(dispatcher, host(folder, capacity=2, **options))
    assert (dispatcher.stopped is None) == trainings.finished


def assert_scored(found: Verified) -> None:
    """Every training once, with the last value of its undisturbed curve."""
    assert sorted(found.made, key=str) == sorted(all_trainings(PLAN), key=str)
    for place, training in enumerate(all_trainings(PLAN)):
        metrics = found.scores.metrics(training.arm, training.seed, training.learning_rate, "test")
        assert metrics["loss"] == curve(trial_spec(PLAN, training, place))[-1][1]


def acknowledged(folder: Path) -> list[tuple[int, int]]:
    """(trial, step) of everything that workers have said and the driver has answered."""
    lines = (folder / "ledger").read_text(encoding="utf-8").splitlines()
    return [(trial, step) for trial, _, step, _, _ in map(json.loads, lines)]


@pytest.mark.parametrize("executor", [INLINE, RAY_TWO], indirect=True)
def test_a_stopped_verification_goes_on_from_scores_and_slot_files(executor: Executor, tmp_path: Path) -> None:
    found = Verified(Scores(), [])
    verify(executor, tmp_path, found, exchanges=5)
    assert len(found.made) < 6
    verify(executor, tmp_path, found)
    assert_scored(found)
    rows = acknowledged(tmp_path)
    assert len(rows) == len(set(rows)) == 6 * 10  # nine checkpoints and the measurement: none was trained twice


@pytest.mark.ray
@pytest.mark.parametrize("executor", [RAY_TWO], indirect=True)
def test_a_worker_that_dies_in_a_verification_is_started_again(executor: Executor, tmp_path: Path) -> None:
    found = Verified(Scores(), [])
    verify(executor, tmp_path, found, faults={1: Fault("exit once", 11)})
    assert_scored(found)
    rows = acknowledged(tmp_path)
    assert {step for trial, step in rows if trial == 1} == set(range(2, 21, 2))


@pytest.mark.parametrize("executor", [INLINE, RAY_ONE], indirect=True)
def test_a_training_that_fails_ends_the_verification_and_keeps_its_scores(executor: Executor, tmp_path: Path) -> None:
    found = Verified(Scores(), [])
    with pytest.raises(SearchError, match=r"default with seed \d+ failed \(error\): raise at step 8 on purpose"):
        verify(executor, tmp_path, found, faults={5: Fault("raise", 8), 0: Fault("diverge", 3)})
    assert {DIVERGED: 1.0} in [dict(found.scores.metrics(*training.key)) for training in found.made]
    assert 0 < len(found.made) < 6
