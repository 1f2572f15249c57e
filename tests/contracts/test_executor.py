"""The contract of executors, over every implementation and both sources of trials, with hosts that train by formula:
a real study in a real database, and the trainings of a verification.

Ray is started once for all of these tests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from automl.errors import AutomlError, ModelError, SearchError
from automl.execution import make_executor
from automl.execution.base import Executor, Host, HostFactory
from automl.execution.dispatch import Dispatcher
from automl.execution.ray_tune import RayExecutor
from automl.space.entries import PRUNERS, Pruner
from automl.space.options import Options
from automl.space.spec import SearchSettings
from automl.study.distributions import suggest
from automl.study.feasibility import Feasibility
from automl.study.parking import ParkingPruner
from automl.study.pruning import make_pruner
from automl.study.sampling import make_sampler
from automl.trial import Action, Decision, Measurement, Metrics, TrialFailure
from automl.verify.plan import Training, all_trainings, trial_spec
from automl.verify.protocol import DIVERGED, Scores
from automl.verify.trainings import Trainings
from tests.faults.search import SPACE, Search, derive, open_search, undisturbed, violations
from tests.formula import Fault, FormulaHost, curve
from tests.verify.verify_cases import arm, make_plan

SETTINGS = SearchSettings(sampler="random", pruner="none", trials=6, steps=12, evaluate_every=3, seed=5)


class Kind(NamedTuple):
    """An executor to test: its name and its number of workers."""

    name: str
    workers: int


INLINE, RAY_ONE, RAY_TWO = Kind("inline", 1), Kind("ray", 1), Kind("ray", 2)
EVERY = [
    pytest.param(INLINE, id="inline"),
    pytest.param(RAY_TWO, id="ray", marks=pytest.mark.ray),
]
ONE_WORKER = [
    pytest.param(INLINE, id="inline"),
    pytest.param(RAY_ONE, id="ray", marks=pytest.mark.ray),
]


@pytest.fixture(scope="module")
def ray_executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    with RayExecutor(workers=2, folder=tmp_path_factory.mktemp("tune")) as executor:
        yield executor


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Executor:
    """The executor of that kind; the one over Ray keeps its cluster between tests."""
    kind: Kind = request.param
    if kind.name == "inline":
        return make_executor("inline")
    ray: RayExecutor = request.getfixturevalue("ray_executor")
    ray.workers = kind.workers
    return ray


def host(folder: Path, **options: object) -> HostFactory:
    return functools.partial(FormulaHost, str(folder / "slots"), ledger=str(folder / "ledger"), **options)


def search(
    executor: Executor, folder: Path, settings: SearchSettings = SETTINGS, **options: object
) -> list[FrozenTrial]:
    """Run the study until its budget is spent, check everything that must always hold, and return its trials."""
    with open_search(folder, settings) as opened:
        executor.run(Dispatcher(opened.study), host(folder, **options))
        opened.study.close()
        check_curves(opened, settings)
        trials = opened.study.optuna.get_trials()
    assert violations(folder, settings, finished=True) == []
    return trials


def check_curves(opened: Search, settings: SearchSettings) -> None:
    """Every stored curve is the undisturbed one, bit for bit, as far as it goes; Optuna has the same values."""
    for trial in opened.study.optuna.get_trials():
        stored = [(item.step, item.metrics["loss"]) for item in opened.store.measurements(trial.number)]
        assert stored == undisturbed(settings, trial.number, trial.params)[: len(stored)]
        assert stored == sorted(trial.intermediate_values.items())


def states(trials: Sequence[FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


@pytest.mark.parametrize(
    ("executor", "capacity"),
    [
        pytest.param(INLINE, 1, id="inline-1"),
        pytest.param(INLINE, 3, id="inline-3"),
        pytest.param(RAY_TWO, 3, id="ray-3", marks=pytest.mark.ray),
    ],
    indirect=["executor"],
)
def test_the_budget_is_spent_exactly_and_curves_do_not_depend_on_company(
    executor: Executor, tmp_path: Path, capacity: int
) -> None:
    trials = search(executor, tmp_path, capacity=capacity)
    assert states(trials) == ["COMPLETE"] * 6
    assert not list((tmp_path / "slots").iterdir())


@pytest.mark.parametrize("executor", EVERY, indirect=True)
@pytest.mark.parametrize(("pruner", "option"), [("peer", "first_rung"), ("median", "n_startup_trials")])
def test_a_pruned_trial_really_stops(executor: Executor, tmp_path: Path, pruner: str, option: str) -> None:
    options = {option: 1}
    settings = SearchSettings(
        sampler="random", pruner=pruner, pruner_options=options, trials=12, steps=12, evaluate_every=3, seed=1
    )
    trials = search(executor, tmp_path, settings, capacity=3)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(trials) == 12
    assert pruned
    assert all((trial.last_step or 0) < 12 for trial in pruned)


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_a_failed_trial_is_replaced_and_a_diverged_one_is_not(executor: Executor, tmp_path: Path) -> None:
    faults = {1: Fault("raise", 4), 2: Fault("diverge", 5), 3: Fault("oom", 1)}
    trials = search(executor, tmp_path, capacity=2, faults=faults)
    assert [trials[number].state.name for number in (1, 2, 3)] == ["FAIL", "PRUNED", "PRUNED"]
    assert [trials[number].user_attrs["stop_reason"] for number in (1, 2, 3)] == ["error", "diverged", "oom"]
    assert "raise at step 4 on purpose" in trials[1].user_attrs["error"]
    assert trials[2].constraints
    assert sorted(states(trials)) == ["COMPLETE"] * 4 + ["FAIL"] + ["PRUNED"] * 2


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_too_many_failures_end_the_search(executor: Executor, tmp_path: Path) -> None:
    settings = SearchSettings(sampler="random", pruner="none", trials=6, steps=4, evaluate_every=2, max_failed_trials=2)
    faults = {number: Fault("raise", 1) for number in range(6)}
    with open_search(tmp_path, settings) as opened:
        with pytest.raises(SearchError, match="2 trials failed"):
            executor.run(Dispatcher(opened.study), host(tmp_path, faults=faults))
        assert not opened.study.live


@pytest.mark.parametrize("executor", EVERY, indirect=True)
def test_a_stopped_search_is_continued_from_slot_files(executor: Executor, tmp_path: Path) -> None:
    with open_search(tmp_path, SETTINGS) as opened:
        exchanges = 0

        def stop_early() -> None:
            nonlocal exchanges
            exchanges += 1
            if exchanges == 5:
                dispatcher.stop("SIGTERM")

        dispatcher = Dispatcher(opened.study, on_exchange=stop_early)
        executor.run(dispatcher, host(tmp_path, capacity=3))
        assert dispatcher.stopped == "SIGTERM"
        attempts = [attempt.state.value for attempt in opened.store.attempts()]
        assert "INTERRUPTED" in attempts
        assert "RUNNING" not in attempts
    assert violations(tmp_path, SETTINGS, finished=False) == []
    before = (tmp_path / "ledger").read_text(encoding="utf-8").splitlines()
    trials = search(executor, tmp_path, capacity=3)
    assert states(trials) == ["COMPLETE"] * 6
    # Nothing that had been acknowledged was trained again.
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len({(trial, step) for trial, _, step, _, _ in lines}) == 24
    assert len(before) < 24


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_wall_clock_stops_in_between(executor: Executor, tmp_path: Path) -> None:
    with open_search(tmp_path, SETTINGS) as opened:
        dispatcher = Dispatcher(opened.study, max_seconds=0.0)
        executor.run(dispatcher, host(tmp_path))
        assert dispatcher.stopped == "time"
        assert not opened.study.finished


class HalfwayParking(ParkingPruner):
    """Parks every trial at step 6, and promotes the one with the lowest loss as long as fewer than `most` went on."""

    def __init__(self, most: int) -> None:
        self._most = most

    def horizon(self, step: int) -> int:
        return 6 if step < 6 else SETTINGS.steps

    def decide(self, trial: FrozenTrial) -> Decision:
        action = Action.PARK if trial.last_step == 6 else Action.CONTINUE
        return Decision(trial=trial.number, action=action, reason="halfway")

    def promote(
        self, trials: Sequence[FrozenTrial], parked: Set[int], *, direction: StudyDirection, may_start: bool
    ) -> int | None:
        gone_on = sum((trial.last_step or 0) > 6 or trial.state.is_finished() for trial in trials)
        running = len(trials) - len(parked) - gone_on
        if len(trials) < SETTINGS.trials or running or gone_on >= self._most:
            return None
        return min(parked, key=lambda number: trials[number].intermediate_values[6], default=None)


@pytest.fixture
def parking() -> Iterator[None]:
    PRUNERS["halfway"] = Pruner(options=Options, build=lambda settings, options: HalfwayParking(2))
    yield
    del PRUNERS["halfway"]


@pytest.mark.usefixtures("parking")
@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_parked_trials_are_promoted_and_continue_their_curves(executor: Executor, tmp_path: Path) -> None:
    settings = SearchSettings(sampler="random", pruner="halfway", trials=6, steps=12, evaluate_every=3, seed=5)
    trials = search(executor, tmp_path, settings, capacity=2)
    assert sorted(states(trials)) == ["COMPLETE"] * 2 + ["PRUNED"] * 4
    halfway = sorted(trials, key=lambda trial: trial.intermediate_values[6])
    assert states(halfway[:2]) == ["COMPLETE", "COMPLETE"]
    assert all(trial.last_step == 6 for trial in halfway[2:])


def replay(settings: SearchSettings) -> list[FrozenTrial]:
    """The same search through plain Optuna, one trial at a time: suggest, report, ask the pruner, stop."""
    sampler = make_sampler(settings, SPACE, Feasibility(SPACE, derive), run=1)
    study = optuna.create_study(sampler=sampler, pruner=make_pruner(settings), direction="minimize")

    def objective(trial: optuna.Trial) -> float:
        loss = 0.0
        for step, loss in undisturbed(settings, trial.number, suggest(trial, SPACE)):
            trial.report(loss, step)
            if step < settings.steps and trial.should_prune():
                raise optuna.TrialPruned
        return loss

    study.optimize(objective, n_trials=settings.trials)
    return study.get_trials()


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
@pytest.mark.parametrize(
    ("pruner", "options"), [("median", {"n_startup_trials": 2}), ("peer", {"first_rung": 1})], ids=["median", "peer"]
)
def test_one_trial_at_a_time_decides_exactly_as_plain_optuna(
    executor: Executor, tmp_path: Path, pruner: str, options: Mapping[str, int]
) -> None:
    settings = SearchSettings(
        sampler="tpe", pruner=pruner, pruner_options=options, trials=14, steps=12, evaluate_every=3, seed=3
    )
    ours, plain = search(executor, tmp_path, settings), replay(settings)
    assert states(ours) == states(plain)
    assert "PRUNED" in states(ours)
    assert [trial.params for trial in ours] == [trial.params for trial in plain]
    assert [trial.value for trial in ours] == [trial.value for trial in plain]
    assert [trial.intermediate_values for trial in ours] == [trial.intermediate_values for trial in plain]


def refuse_to_build() -> Host:
    raise ModelError("model: /nowhere/model has no config")


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_a_host_that_cannot_be_built_ends_the_search_with_its_error(executor: Executor, tmp_path: Path) -> None:
    with open_search(tmp_path, SETTINGS) as opened, pytest.raises(ModelError, match="has no config"):
        executor.run(Dispatcher(opened.study), refuse_to_build)


class BrokenHost(FormulaHost):
    """A host with a bug outside of any trial."""

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        raise RuntimeError("the device fell off")


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_a_bug_in_the_host_leaves_its_trials_resumable(executor: Executor, tmp_path: Path) -> None:
    fell_off = pytest.raises((AutomlError, RuntimeError), match="the device fell off")
    with open_search(tmp_path, SETTINGS) as opened, fell_off:
        executor.run(Dispatcher(opened.study), functools.partial(BrokenHost, str(tmp_path / "slots")))
    assert violations(tmp_path, SETTINGS, finished=False) == []
    assert states(search(executor, tmp_path)) == ["COMPLETE"] * 6


@pytest.mark.ray
@pytest.mark.parametrize("executor", [pytest.param(RAY_TWO, id="ray")], indirect=True)
def test_a_trial_that_kills_its_worker_fails_and_its_neighbours_finish(executor: Executor, tmp_path: Path) -> None:
    trials = search(executor, tmp_path, faults={1: Fault("exit", 5)})
    assert trials[1].user_attrs["stop_reason"] == "host_crash"
    assert sorted(states(trials)) == ["COMPLETE"] * 6 + ["FAIL"]


# The trainings of a verification are another source of trials: no study, no Optuna.

PLAN = make_plan([arm("trial-3", "finalist"), arm("default", "default", rates=(2e-4,))], seeds=3, metric="loss")


class Verified(NamedTuple):
    """What has been scored, in this order, over all runs."""

    scores: Scores
    made: list[Training]


def verify(executor: Executor, folder: Path, found: Verified, *, exchanges: int = 0, **options: object) -> None:
    """Train what is missing; with `exchanges`, stop after so many."""

    def keep(training: Training, metrics: Metrics) -> None:
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


@pytest.mark.parametrize("executor", EVERY, indirect=True)
def test_a_stopped_verification_goes_on_from_scores_and_slot_files(executor: Executor, tmp_path: Path) -> None:
    found = Verified(Scores(), [])
    verify(executor, tmp_path, found, exchanges=5)
    assert len(found.made) < 6
    verify(executor, tmp_path, found)
    assert_scored(found)
    rows = acknowledged(tmp_path)
    assert len(rows) == len(set(rows)) == 6 * 10  # nine checkpoints and the measurement: none was trained twice


@pytest.mark.ray
@pytest.mark.parametrize("executor", [pytest.param(RAY_TWO, id="ray")], indirect=True)
def test_a_worker_that_dies_in_a_verification_is_started_again(executor: Executor, tmp_path: Path) -> None:
    found = Verified(Scores(), [])
    verify(executor, tmp_path, found, faults={1: Fault("exit once", 11)})
    assert_scored(found)
    rows = acknowledged(tmp_path)
    assert {step for trial, step in rows if trial == 1} == set(range(2, 21, 2))


@pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
def test_a_training_that_fails_ends_the_verification_and_keeps_its_scores(executor: Executor, tmp_path: Path) -> None:
    found = Verified(Scores(), [])
    with pytest.raises(SearchError, match=r"default with seed \d+ failed \(error\): raise at step 8 on purpose"):
        verify(executor, tmp_path, found, faults={5: Fault("raise", 8), 0: Fault("diverge", 3)})
    assert {DIVERGED: 1.0} in [dict(found.scores.metrics(*training.key)) for training in found.made]
    assert 0 < len(found.made) < 6
