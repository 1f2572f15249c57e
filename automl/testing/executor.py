"""The contract of an executor: a study run by it is the study Optuna alone would run, however it is stopped.

Trials are those of a real study in a SQLite file; their hosts train by formula (`automl.testing.formula`), so nothing
here takes long but starting workers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from automl.errors import AutomlError, ModelError, SearchError
from automl.execution.base import Executor, Host, HostFactory
from automl.execution.dispatch import Dispatcher
from automl.space.entries import PRUNERS, Pruner
from automl.space.options import Options
from automl.space.spec import SearchSettings
from automl.study.distributions import suggest
from automl.study.feasibility import Feasibility
from automl.study.parking import ParkingPruner
from automl.study.pruning import make_pruner
from automl.study.sampling import make_sampler
from automl.testing.formula import Fault, FormulaHost
from automl.testing.formula_study import SPACE, Search, derive, open_search, undisturbed, violations
from automl.trial import Action, Decision

SETTINGS = SearchSettings(sampler="random", pruner="none", trials=6, steps=12, evaluate_every=3, seed=5)


class ExecutorContract:
    """Derive, and give a fixture `executor`: a started one. Give `alone` too if that one has several workers."""

    @pytest.fixture
    def alone(self, executor: Executor) -> Executor:
        """An executor with one worker, which trains one trial after the other in their order."""
        return executor

    @pytest.mark.parametrize("capacity", [1, 3])
    def test_the_budget_is_spent_exactly_and_curves_do_not_depend_on_company(
        self, executor: Executor, tmp_path: Path, capacity: int
    ) -> None:
        assert _states(_search(executor, tmp_path, capacity=capacity)) == ["COMPLETE"] * 6
        assert not list((tmp_path / "slots").iterdir())

    @pytest.mark.parametrize(("pruner", "option"), [("peer", "first_rung"), ("median", "n_startup_trials")])
    def test_a_pruned_trial_really_stops(self, executor: Executor, tmp_path: Path, pruner: str, option: str) -> None:
        settings = SearchSettings(
            sampler="random", pruner=pruner, pruner_options={option: 1}, trials=12, steps=12, evaluate_every=3, seed=1
        )
        trials = _search(executor, tmp_path, settings, capacity=3)
        pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
        assert len(trials) == 12
        assert pruned
        assert all((trial.last_step or 0) < 12 for trial in pruned)

    def test_a_failed_trial_is_replaced_and_a_diverged_one_is_not(self, alone: Executor, tmp_path: Path) -> None:
        faults = {1: Fault("raise", 4), 2: Fault("diverge", 5), 3: Fault("oom", 1)}
        trials = _search(alone, tmp_path, capacity=2, faults=faults)
        assert [trials[number].state.name for number in (1, 2, 3)] == ["FAIL", "PRUNED", "PRUNED"]
        assert [trials[number].user_attrs["stop_reason"] for number in (1, 2, 3)] == ["error", "diverged", "oom"]
        assert "raise at step 4 on purpose" in trials[1].user_attrs["error"]
        assert trials[2].constraints
        assert sorted(_states(trials)) == ["COMPLETE"] * 4 + ["FAIL"] + ["PRUNED"] * 2

    def test_too_many_failures_end_the_search(self, alone: Executor, tmp_path: Path) -> None:
        settings = SearchSettings(
            sampler="random", pruner="none", trials=6, steps=4, evaluate_every=2, max_failed_trials=2
        )
        faults = {number: Fault("raise", 1) for number in range(6)}
        with open_search(_url(tmp_path), settings) as opened:
            with pytest.raises(SearchError, match="2 trials failed"):
                alone.run(Dispatcher(opened.study), _host(tmp_path, faults=faults))
            assert not opened.study.live

    def test_a_stopped_search_is_continued_from_slot_files(self, executor: Executor, tmp_path: Path) -> None:
        with open_search(_url(tmp_path), SETTINGS) as opened:
            exchanges = 0

            def stop_early() -> None:
                nonlocal exchanges
                exchanges += 1
                if exchanges == 5:
                    dispatcher.stop("SIGTERM")

            dispatcher = Dispatcher(opened.study, on_exchange=stop_early)
            executor.run(dispatcher, _host(tmp_path, capacity=3))
            assert dispatcher.stopped == "SIGTERM"
            attempts = [attempt.state.value for attempt in opened.store.attempts()]
            assert "INTERRUPTED" in attempts
            assert "RUNNING" not in attempts
        assert violations(_url(tmp_path), SETTINGS, finished=False) == []
        before = (tmp_path / "ledger").read_text(encoding="utf-8").splitlines()
        assert _states(_search(executor, tmp_path, capacity=3)) == ["COMPLETE"] * 6
        # Nothing that had been acknowledged was trained again.
        lines = [json.loads(line) for line in (tmp_path / "ledger").read_text(encoding="utf-8").splitlines()]
        assert len(lines) == len({(trial, step) for trial, _, step, _, _ in lines}) == 24
        assert len(before) < 24

    def test_wall_clock_stops_in_between(self, alone: Executor, tmp_path: Path) -> None:
        with open_search(_url(tmp_path), SETTINGS) as opened:
            dispatcher = Dispatcher(opened.study, max_seconds=0.0)
            alone.run(dispatcher, _host(tmp_path))
            assert dispatcher.stopped == "time"
            assert not opened.study.finished

    @pytest.fixture
    def parking(self) -> Iterator[None]:
        """A pruner that parks, for as long as a test."""
        PRUNERS["halfway"] = Pruner(options=Options, build=lambda settings, options: _HalfwayParking(2))
        yield
        del PRUNERS["halfway"]

    @pytest.mark.usefixtures("parking")
    def test_parked_trials_are_promoted_and_continue_their_curves(self, alone: Executor, tmp_path: Path) -> None:
        settings = SearchSettings(sampler="random", pruner="halfway", trials=6, steps=12, evaluate_every=3, seed=5)
        trials = _search(alone, tmp_path, settings, capacity=2)
        assert sorted(_states(trials)) == ["COMPLETE"] * 2 + ["PRUNED"] * 4
        halfway = sorted(trials, key=lambda trial: trial.intermediate_values[6])
        assert _states(halfway[:2]) == ["COMPLETE", "COMPLETE"]
        assert all(trial.last_step == 6 for trial in halfway[2:])

    @pytest.mark.parametrize(
        ("pruner", "options"),
        [("median", {"n_startup_trials": 2}), ("peer", {"first_rung": 1})],
        ids=["median", "peer"],
    )
    def test_one_trial_at_a_time_decides_exactly_as_plain_optuna(
        self, alone: Executor, tmp_path: Path, pruner: str, options: Mapping[str, int]
    ) -> None:
        settings = SearchSettings(
            sampler="tpe", pruner=pruner, pruner_options=options, trials=14, steps=12, evaluate_every=3, seed=3
        )
        ours, plain = _search(alone, tmp_path, settings), _replay(settings)
        assert _states(ours) == _states(plain)
        assert "PRUNED" in _states(ours)
        assert [trial.params for trial in ours] == [trial.params for trial in plain]
        assert [trial.value for trial in ours] == [trial.value for trial in plain]
        assert [trial.intermediate_values for trial in ours] == [trial.intermediate_values for trial in plain]

    def test_a_host_that_cannot_be_built_ends_the_search_with_its_error(self, alone: Executor, tmp_path: Path) -> None:
        with open_search(_url(tmp_path), SETTINGS) as opened, pytest.raises(ModelError, match="has no config"):
            alone.run(Dispatcher(opened.study), _refuse_to_build)

    def test_a_bug_in_the_host_leaves_its_trials_resumable(self, alone: Executor, tmp_path: Path) -> None:
        fell_off = pytest.raises((AutomlError, RuntimeError), match="the device fell off")
        with open_search(_url(tmp_path), SETTINGS) as opened, fell_off:
            alone.run(Dispatcher(opened.study), _host(tmp_path, faults={0: Fault("bug", 1)}))
        assert violations(_url(tmp_path), SETTINGS, finished=False) == []
        assert _states(_search(alone, tmp_path)) == ["COMPLETE"] * 6


class ProcessExecutorContract(ExecutorContract):
    """What is asked as well of an executor whose workers are processes of their own, which may die."""

    def test_a_trial_that_kills_its_worker_fails_and_its_neighbours_finish(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        trials = _search(executor, tmp_path, faults={1: Fault("exit", 5)})
        assert trials[1].user_attrs["stop_reason"] == "host_crash"
        assert sorted(_states(trials)) == ["COMPLETE"] * 6 + ["FAIL"]


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'search.db'}"


def _host(folder: Path, **options: object) -> HostFactory:
    return functools.partial(FormulaHost, str(folder / "slots"), ledger=str(folder / "ledger"), **options)  # type: ignore[arg-type]


def _search(
    executor: Executor, folder: Path, settings: SearchSettings = SETTINGS, **options: object
) -> list[FrozenTrial]:
    """Run the study until its budget is spent, check everything that must always hold, and return its trials."""
    with open_search(_url(folder), settings) as opened:
        executor.run(Dispatcher(opened.study), _host(folder, **options))
        opened.study.close()
        _check_curves(opened, settings)
        trials = opened.study.optuna.get_trials()
    assert violations(_url(folder), settings, finished=True) == []
    return trials


def _check_curves(opened: Search, settings: SearchSettings) -> None:
    """Every stored curve is the undisturbed one, bit for bit, as far as it goes; Optuna has the same values."""
    for trial in opened.study.optuna.get_trials():
        stored = [(item.step, item.metrics["loss"]) for item in opened.store.measurements(trial.number)]
        assert stored == undisturbed(settings, trial.number, trial.params)[: len(stored)]
        assert stored == sorted(trial.intermediate_values.items())


def _states(trials: Sequence[FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


class _HalfwayParking(ParkingPruner):
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


def _replay(settings: SearchSettings) -> list[FrozenTrial]:
    """Run the search through plain Optuna, one trial at a time: suggest, report, ask the pruner, stop."""
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


def _refuse_to_build() -> Host:
    raise ModelError("model: /nowhere/model has no config")
