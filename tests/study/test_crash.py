"""A driver that dies before any of its writes: the next one loses nothing, doubles nothing, and keeps the budget."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState as State

from automl.storage.base import AttemptState
from automl.storage.invariants import check
from automl.storage.lease import StudyLease
from automl.storage.sql import Database
from automl.study.study import Study
from automl.trial import TrialState
from tests.study.driving import SPACE, Loop, bowl, measured, open_study, settings, trials

SEARCH = settings(trials=6, keep=2, pruner_options={"min_peers": 3})


class Killed(BaseException):
    """Stands for kill -9."""


class Guard:
    """Called before each commit of store and storage; kills the driver before commit number `last`."""

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.writes = 0

    def __call__(self, *_: object) -> None:
        self.writes += 1
        if self.writes == self.last:
            raise Killed


class Worker:
    """Survives the drivers: what its slot files hold."""

    def __init__(self) -> None:
        self.done: dict[int, int] = {}


def drive(database: Database, worker: Worker, run: int, last_write: int | None) -> int:
    """One driver, from opening the study to its end or its death; returns the writes it made."""
    guard = Guard(last_write)
    storage = database.optuna_storage(guard)
    try:
        study = open_study(
            database,
            storage=storage,
            store=database.store("study", guard),
            settings=SEARCH,
            run=run,
            digest=lambda folder: ("0" * 64, 1),
        )
        Loop(study, slots=3, adapters=True, done=worker.done).run()
    finally:  # the end of a process takes its transaction back
        storage.remove_session()
        storage.engine.dispose()
    return guard.writes


def check_result(database: Database) -> None:
    study = optuna.load_study(study_name="study", storage=database.optuna_storage())
    done = study.get_trials()
    counted = [trial for trial in done if trial.state in (State.COMPLETE, State.PRUNED)]
    assert len(counted) == 6
    assert {trial.state for trial in done} <= {State.COMPLETE, State.PRUNED, State.FAIL}
    assert [trial.user_attrs["stop_reason"] for trial in done if trial.state is State.FAIL] in ([], ["lost"])
    store = database.store("study")
    for trial in counted:
        stored = {m.step: m.metrics["loss"] for m in store.measurements(trial.number)}
        assert stored == trial.intermediate_values
        assert sorted(stored) == list(range(10, max(stored) + 1, 10))
        assert (max(stored) == 80) == (trial.state is State.COMPLETE)
    complete = sorted((trial.value, trial.number) for trial in counted if trial.state is State.COMPLETE)
    assert {artifact.trial for artifact in store.artifacts()} == {number for _, number in complete[:2]}
    assert check(database, "study", finished=True, max_trials=6, files=False) == []


@pytest.mark.parametrize("last_write", range(3, 200, 17))
def test_killed_before_a_write(database: Database, last_write: int) -> None:
    worker = Worker()
    with StudyLease(database, "study") as lease:
        lease.take("text", "0" * 64, {})
        try:
            drive(database, worker, 1, last_write)
        except Killed:
            drive(database, worker, 2, None)
        check_result(database)


def test_killed_again_and_again(database: Database) -> None:
    worker = Worker()
    with StudyLease(database, "study") as lease:
        lease.take("text", "0" * 64, {})
        for run in range(1, 100):
            try:
                # Each driver gets a little further, so that none dies for ever at the same write.
                drive(database, worker, run, 14 + run)
                break
            except Killed:
                continue
        assert run > 5, "several drivers must have died for the test to mean anything"
        check_result_of_many(database)


def check_result_of_many(database: Database) -> None:
    done = optuna.load_study(study_name="study", storage=database.optuna_storage()).get_trials()
    assert sum(trial.state in (State.COMPLETE, State.PRUNED) for trial in done) == 6
    assert {trial.user_attrs["stop_reason"] for trial in done if trial.state is State.FAIL} <= {"lost"}
    assert check(database, "study", finished=True, max_trials=6, files=False) == []


def abandoned(database: Database, evaluations: int) -> tuple[Study, Loop]:
    """A study left without a word after so many evaluations of three trials, nothing decided."""
    study = open_study(database, settings=SEARCH)
    loop = Loop(study, slots=3)
    loop.fill()
    for _ in range(evaluations):
        loop.report()
    return study, loop


def test_killed_inside_ask_the_trial_is_lost_and_replaced(database: Database) -> None:
    open_study(database, settings=SEARCH).optuna.ask()
    study = open_study(database, settings=SEARCH, run=2)
    (trial,) = trials(study)
    assert (trial.state, trial.user_attrs) == (State.FAIL, {"stop_reason": "lost"})
    spec = study.next(worker=0)
    assert spec is not None
    assert spec.number == 1


def test_killed_inside_ask_with_some_parameters_the_trial_is_lost(database: Database) -> None:
    open_study(database, settings=SEARCH).optuna.ask().suggest_int("rank", 2, 32, log=True)
    study = open_study(database, settings=SEARCH, run=2)
    assert trials(study)[0].user_attrs["stop_reason"] == "lost"


def test_killed_inside_ask_an_enqueued_trial_keeps_its_configuration(database: Database) -> None:
    space = type(SPACE)(parameters=SPACE.parameters, enqueue=({"rank": 7, "target": "qv"},))
    open_study(database, space=space, settings=SEARCH).optuna.ask()
    study = open_study(database, space=space, settings=SEARCH, run=2)
    spec = study.next(worker=0)
    assert spec is not None
    assert (spec.number, spec.params["rank"], spec.params["target"]) == (0, 7, "qv")


def test_killed_after_ask_the_trial_is_handed_out_again_with_its_parameters(database: Database) -> None:
    before, _ = abandoned(database, 0)
    specs = dict(before.live)
    study = open_study(database, settings=SEARCH, run=2)
    again = [study.next(worker=0) for _ in range(3)]
    assert [spec.params for spec in again if spec] == [spec.params for spec in specs.values()]
    assert [spec.seed for spec in again if spec] == [spec.seed for spec in specs.values()]
    assert [spec.attempt for spec in again if spec] == [2, 2, 2]


def test_killed_between_report_and_decide_the_pruner_is_asked_again(database: Database) -> None:
    _, loop = abandoned(database, 2)
    values = {trial.number: trial.intermediate_values[20] for trial in trials(loop.study)}
    study = open_study(database, settings=SEARCH, run=2)
    pruned = [trial.number for trial in trials(study) if trial.state is State.PRUNED]
    assert pruned == sorted(set(values) - {min(values, key=lambda number: values[number])})
    assert study.counts()[TrialState.RUNNING] == 1


def test_values_that_only_the_store_has_reach_optuna(database: Database) -> None:
    before, _ = abandoned(database, 1)
    store = database.store("study")
    store.add_measurements([measured(spec, 20, bowl(spec, 20)) for spec in before.live.values()])
    study = open_study(database, settings=settings(pruner="none"), run=2)
    assert [sorted(trial.intermediate_values) for trial in trials(study)] == [[10, 20]] * 3
    assert study.spent_steps == 60


def test_a_final_measurement_whose_tell_was_lost_completes_the_trial(database: Database) -> None:
    study = open_study(database, settings=settings(trials=1, pruner="none"))
    loop = Loop(study, adapters=True)
    loop.fill()
    for _ in range(8):
        loop.report()
    again = open_study(database, settings=settings(trials=1, pruner="none"), run=2, digest=lambda folder: ("d" * 64, 3))
    (trial,) = trials(again)
    assert trial.state is State.COMPLETE
    assert trial.user_attrs["adapter"] == "adapters/0"
    assert [(artifact.trial, artifact.sha256) for artifact in database.store("study").artifacts()] == [(0, "d" * 64)]
    assert database.store("study").attempts()[-1].state is AttemptState.SUCCEEDED
    assert again.finished


def test_a_divergence_whose_tell_was_lost_is_completed(database: Database) -> None:
    before, _ = abandoned(database, 1)
    trial = optuna.Trial(before.optuna, trials(before)[1]._trial_id)
    trial.set_user_attr("stop_reason", "diverged")
    study = open_study(database, settings=SEARCH, run=2)
    assert trials(study)[1].state is State.PRUNED
    assert trials(study)[1].constraints == {"finite": 1.0}


def test_what_was_adopted_is_on_record(database: Database) -> None:
    abandoned(database, 1)
    open_study(database, settings=SEARCH, run=2)
    (event,) = database.store("study").events()
    assert event[1:] == ("adopted", {"run": 2, "trials": [0, 1, 2], "queued": [0, 1, 2]})
