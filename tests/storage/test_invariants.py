"""The checker finds nothing in a sound database, everything in a damaged one, and repairs what a dead driver left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState
from sqlalchemy import text

from automl.errors import StudyBusyError
from automl.storage.base import AttemptState
from automl.storage.invariants import check, repair
from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from automl.trial import Measurement
from tests.databases import fresh_sqlite
from tests.storage.sweeps import STUDY, finished_sweep

TRIAL = "(SELECT trial_id FROM trials WHERE number = {})"
DAMAGE = {
    "a complete trial loses its value": ("I1", f"DELETE FROM trial_values WHERE trial_id = {TRIAL.format(0)}"),
    "a number is used twice": ("I2", "UPDATE trials SET number = 0 WHERE number = 1"),
    "a trial is lost": ("I3", "UPDATE trials SET number = 7 WHERE number = 4"),
    "a final value is infinite": (
        "I4",
        f"UPDATE trial_values SET value = NULL, value_type = 'INF_NEG' WHERE trial_id = {TRIAL.format(0)}",
    ),
    "a trial is still running": ("I5", "UPDATE trials SET state = 'RUNNING' WHERE number = 4"),
    "a trial is still waiting": ("I5", "UPDATE trials SET state = 'WAITING' WHERE number = 4"),
    "a trial ends before it starts": ("I7", "UPDATE trials SET datetime_complete = '2001-01-01' WHERE number = 1"),
    "a trial has no end": ("I7", "UPDATE trials SET datetime_complete = NULL WHERE number = 4"),
    "a failed trial has a value": ("I8", "UPDATE trials SET state = 'FAIL' WHERE number = 0"),
    "a pruned trial never reported": (
        "I9",
        f"DELETE FROM trial_intermediate_values WHERE trial_id = {TRIAL.format(1)}",
    ),
    "a complete trial has no parameters": ("I10", f"DELETE FROM trial_params WHERE trial_id = {TRIAL.format(0)}"),
    "a trial succeeded twice": (
        "I11",
        "INSERT INTO automl_attempts SELECT study_name, trial, 2, worker, run, state, reason, ended_at, ended_at"
        " FROM automl_attempts WHERE trial = 0",
    ),
    "an attempt is missing": ("I12", "UPDATE automl_attempts SET number = 3 WHERE trial = 0"),
    "an attempt is open though nobody drives": (
        "I13",
        "UPDATE automl_attempts SET state = 'RUNNING', ended_at = NULL WHERE trial = 1",
    ),
    "two attempts at the same time": (
        "I18",
        "INSERT INTO automl_attempts SELECT study_name, trial, 2, worker, run, 'LOST', 'x', started_at, ended_at"
        " FROM automl_attempts WHERE trial = 0",
    ),
    "an attempt has no reason": ("I19", "UPDATE automl_attempts SET state = 'LOST', reason = '' WHERE trial = 1"),
    "a complete trial was never handed out": ("I20", "DELETE FROM automl_attempts WHERE trial = 0"),
    "a complete trial's attempt failed": (
        "I20",
        "UPDATE automl_attempts SET state = 'FAILED', reason = 'error' WHERE trial = 0",
    ),
    "a report has no measurement": ("I21", "DELETE FROM automl_metric_values WHERE trial = 0"),
    "a measurement was never reported": (
        "I21",
        f"DELETE FROM trial_intermediate_values WHERE step = 10 AND trial_id = {TRIAL.format(0)}",
    ),
    "a measurement is of no trial": ("I21", "UPDATE automl_attempts SET worker = 1"),
    "two values for one step": (
        "I22",
        "UPDATE automl_metric_values SET value = 0.31 WHERE trial = 0 AND step = 10 AND metric = 'accuracy'",
    ),
}
AFTERWARDS = {  # a second statement, where one cannot do the damage
    "a report has no measurement": "DELETE FROM automl_measurements WHERE trial = 0",
    "a measurement is of no trial": "INSERT INTO automl_measurements (study_name, trial, step, seconds,"
    " tokens, adapter, at) SELECT study_name, 99, step, seconds, tokens, adapter, at FROM automl_measurements"
    " WHERE trial = 1",
}


def found(database: Database, study: str | None = STUDY, *, finished: bool = True) -> set[str]:
    return {violation.id for violation in check(database, study, finished=finished, max_trials=4)}


def run_sql(database: Database, *statements: str) -> None:
    with database.writing("do damage") as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_a_finished_sweep_violates_nothing(database: Database, tmp_path: Path) -> None:
    finished_sweep(database, tmp_path / "adapters")
    assert check(database, STUDY, finished=True, max_trials=4) == []
    assert check(database, None, finished=True, max_trials=4) == []


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with a finished sweep, to be copied."""
    folder = tmp_path_factory.mktemp("swept")
    url = fresh_sqlite(folder)
    with open_database(url, create=False) as database:
        finished_sweep(database, folder / "adapters")
    return Path(url.removeprefix("sqlite:///"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(swept: Path, tmp_path: Path, damage: str) -> None:
    path = shutil.copy(swept, tmp_path / "damaged.db")
    with open_database(f"sqlite:///{path}", create=False) as database:
        invariant, statement = DAMAGE[damage]
        run_sql(database, statement, *([AFTERWARDS[damage]] if damage in AFTERWARDS else []))
        violations = {violation.id: violation for violation in check(database, STUDY, finished=True)}
        assert invariant in violations
        assert all(row[0] == STUDY for row in violations[invariant].rows)
        assert invariant in found(database, None)
        assert found(database, "another study") == set()


def test_damage_of_many_kinds_is_found_at_once(database: Database, tmp_path: Path) -> None:
    finished_sweep(database, tmp_path / "adapters")
    together = ("a trial is lost", "a pruned trial never reported", "an attempt is missing")
    run_sql(database, *(DAMAGE[damage][1] for damage in together), DAMAGE["two values for one step"][1])
    assert found(database) == {"I3", "I9", "I12", "I21", "I22"}


def test_more_trials_than_asked_for_are_found(database: Database, tmp_path: Path) -> None:
    finished_sweep(database, tmp_path / "adapters")
    (violation,) = check(database, STUDY, finished=True, max_trials=3)
    assert (violation.id, violation.rows) == ("I6", ((STUDY, 4),))


class TestArtifacts:
    def test_that_are_gone_are_found_and_marked_deleted(self, database: Database, tmp_path: Path) -> None:
        finished_sweep(database, tmp_path / "adapters")
        for file in (tmp_path / "adapters/trial-00002").iterdir():
            file.unlink()
        (tmp_path / "adapters/trial-00002").rmdir()
        assert found(database) == {"I15"}
        (change,) = repair(database, STUDY)
        assert change.startswith("adapter of trial 2 marked deleted")
        assert found(database) == set()

    def test_with_other_contents_are_found_and_not_repaired(self, database: Database, tmp_path: Path) -> None:
        finished_sweep(database, tmp_path / "adapters")
        (tmp_path / "adapters/trial-00002/adapter_model.safetensors").write_bytes(b"wEights")
        (violation,) = check(database, STUDY, finished=False)
        assert violation.description == "artifact whose contents are not those recorded"
        assert violation.rows == ((STUDY, 2, str(tmp_path / "adapters/trial-00002")),)
        assert repair(database, STUDY) == []
        assert check(database, STUDY, finished=False, files=False) == []

    def test_folders_nobody_recorded_are_found_at_the_end(self, database: Database, tmp_path: Path) -> None:
        finished_sweep(database, tmp_path / "adapters")
        (tmp_path / "adapters/trial-00009").mkdir()
        assert found(database, finished=False) == set()
        (violation,) = check(database, STUDY, finished=True)
        assert violation.rows == ((STUDY, str(tmp_path / "adapters/trial-00009")),)


class TestAfterAKill:
    """The checker can fail: plain Optuna, without lease and attempts, leaves what ours must not."""

    def test_plain_optuna_leaves_a_trial_running(
        self, url: str, start_process: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = start_process("optimise", url, "plain")
        assert process.stdout is not None
        assert process.stdout.readline() == "in a trial\n"
        process.kill()
        process.wait()
        with open_database(url, create=False) as database:
            (violation,) = check(database, "plain", finished=True)
            assert (violation.id, [row[:2] for row in violation.rows]) == ("I5", [("plain", 2)])

    def test_our_driver_leaves_an_open_attempt_that_is_repaired(
        self, url: str, start_process: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = start_process("hold", url, STUDY, 30)
        assert process.stdout is not None
        assert process.stdout.readline() == "run 1\n"
        with open_database(url, create=False) as database:
            assert found(database, finished=False) == set()
            with pytest.raises(StudyBusyError, match=f"'{STUDY}' is being driven by"):
                repair(database, STUDY)
            process.kill()
            process.wait()
            lease, attempt = repair(database, STUDY)
            assert f":{process.pid}:" in lease
            assert lease.endswith("given back: that driver has gone")
            assert attempt == "attempt 1 of trial 0 closed as LOST (its driver died)"
            assert database.store(STUDY).sweep().owner is None
            assert repair(database, STUDY) == []
            assert found(database) == set()
            assert database.store(STUDY).events()[-1][1] == "repaired"


class TestRepair:
    @pytest.fixture
    def study(self, database: Database) -> optuna.Study:
        with StudyLease(database, STUDY) as lease:
            lease.take("space", "a" * 64, {})
        return optuna.create_study(study_name=STUDY, storage=database.optuna_storage())

    def test_a_trial_without_parameters_is_failed(self, database: Database, study: optuna.Study) -> None:
        study.ask()
        assert repair(database, STUDY) == ["trial 0 told FAIL: its driver died before it had parameters"]
        (trial,) = study.trials
        assert (trial.state, trial.user_attrs) == (OptunaState.FAIL, {"stop_reason": "lost"})
        assert found(database) == set()

    def test_trials_that_can_be_resumed_stay_running(self, database: Database, study: optuna.Study) -> None:
        study.ask().suggest_float("x", 0, 1)
        study.enqueue_trial({"x": 0.5})
        study.ask()
        assert repair(database, None) == []
        assert [trial.state for trial in study.trials] == [OptunaState.RUNNING, OptunaState.RUNNING]

    # The driver died between closing the trial in Optuna and its attempt (or the other way round).
    @pytest.mark.parametrize(
        ("state", "reason", "closed"),
        [
            (OptunaState.COMPLETE, "finished", (AttemptState.SUCCEEDED, "finished")),
            (OptunaState.PRUNED, "diverged", (AttemptState.SUCCEEDED, "diverged")),
            (OptunaState.PRUNED, None, (AttemptState.SUCCEEDED, "pruned")),
            (OptunaState.FAIL, "oom", (AttemptState.FAILED, "oom")),
        ],
    )
    def test_an_open_attempt_gets_the_outcome_of_its_trial(
        self,
        database: Database,
        study: optuna.Study,
        state: OptunaState,
        reason: str | None,
        closed: tuple[AttemptState, str],
    ) -> None:
        store = database.store(STUDY)
        trial = study.ask()
        trial.report(trial.suggest_float("x", 0, 1), 1)
        store.add_measurements([Measurement(trial=0, step=1, metrics={"loss": trial.params["x"]})])
        store.start_attempt(0, worker=0, run=1)
        if reason:
            trial.set_user_attr("stop_reason", reason)
        study.tell(trial, 1.0 if state is OptunaState.COMPLETE else None, state=state)
        assert found(database) == {"I13", "I19"}
        assert len(repair(database, STUDY)) == 1
        (attempt,) = store.attempts()
        assert (attempt.state, attempt.reason) == closed
        assert found(database) == set()
