"""Trials read by SQL are those that Optuna reads, in the order of their ranks if they are asked for by it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from sqlalchemy import event

from automl.errors import StudyNotFoundError
from automl.ranking import ranked
from automl.storage.sql import Database
from automl.storage.trials import best_trials, list_trials
from automl.trial import Measurement, TrialState
from tests.storage.sweeps import CURVES, STUDY, finished_sweep


@pytest.fixture
def study(database: Database, tmp_path: Path) -> optuna.Study:
    """A sweep that has ended, then a trial that runs, one parked before its first step, and one that waits."""
    finished_sweep(database, tmp_path)
    study = optuna.load_study(study_name=STUDY, storage=database.optuna_storage())
    for steps in (10, 0):
        trial = study.ask()
        trial.suggest_int("rank", 2, 32)
        if steps:
            trial.report(0.5, steps)
            measured = Measurement(trial=trial.number, step=steps, metrics={"accuracy": 0.5}, seconds=1.5, tokens=10)
            database.store(STUDY).add_measurements([measured])
    study.enqueue_trial({"rank": 3})
    return study


def test_they_are_what_optuna_reads(database: Database, study: optuna.Study) -> None:
    rows, trials = list_trials(database, STUDY), study.trials[:-1]
    assert [(row.number, str(row.state), row.params) for row in rows] == [
        (trial.number, trial.state.name, trial.params) for trial in trials
    ]
    assert [row.steps for row in rows] == [trial.last_step or 0 for trial in trials]
    assert [type(value) for row in rows for value in row.params.values()] == [
        type(value) for trial in trials for value in trial.params.values()
    ]
    assert [row.value for row in rows] == [CURVES[0][-1], CURVES[1][-1], CURVES[2][-1], None, None, None, None]
    assert [row.stop_reason for row in rows] == ["finished", "pruned", "finished", "diverged", "error", None, None]
    assert [row.number for row in rows if row.adapter] == [2]
    assert rows[5].seconds == 1.5


def test_the_best_are_the_first_of_all(database: Database, study: optuna.Study) -> None:
    rows = list_trials(database, STUDY)
    order = [2, 0, 1, 3, 4, 5, 6]
    assert [row.number for row in ranked(rows, "maximize")] == order
    for limit in (1, 3, 100, 5000):
        assert best_trials(database, STUDY, "maximize", limit) == [rows[number] for number in order[:limit]]
    assert best_trials(database, STUDY, "minimize", 2) == [rows[0], rows[2]]


def test_two_objectives_keep_the_value_of_a_pruned_trial_and_the_size_of_a_complete_one(database: Database) -> None:
    both = optuna.create_study(
        study_name="both", storage=database.optuna_storage(), directions=["maximize", "minimize"]
    )
    storage = both._storage
    for state, values in ((optuna.trial.TrialState.COMPLETE, [0.7, 100.0]), (optuna.trial.TrialState.PRUNED, None)):
        trial = both.ask()
        storage.set_trial_intermediate_value(trial._trial_id, 10, 0.6)
        storage.set_trial_state_values(trial._trial_id, state, values)
    complete, pruned = list_trials(database, "both")
    assert (complete.state, complete.value, complete.size) == (TrialState.COMPLETE, 0.7, 100.0)
    assert (pruned.state, pruned.value, pruned.size) == (TrialState.PRUNED, 0.6, None)


# A study of 10,000 trials has 200,000 rows of parameters, attributes and measurements: a list of ten reads few of them.
def test_a_short_list_reads_no_more_than_it_shows(database: Database) -> None:
    many = optuna.create_study(study_name="many", storage=database.optuna_storage())
    for number in range(30):
        many.enqueue_trial({"rank": 2 + number})
    many.optimize(lambda trial: float(trial.suggest_int("rank", 2, 64)), n_trials=30)
    read: list[int] = []
    with database.reading("watch") as connection:
        event.listen(
            connection.engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: (
                read.append(len(parameters)) if "trial_params" in statement else None
            ),
        )
    assert [row.params["rank"] for row in best_trials(database, "many", "minimize", 3)] == [2, 3, 4]
    assert read == [3]


def test_a_study_that_is_not_there_is_named(database: Database, study: optuna.Study) -> None:
    for read in (list_trials, lambda database, name: best_trials(database, name, "maximize", 1)):
        with pytest.raises(StudyNotFoundError, match="no study 'other' in the database; there is: topics"):
            read(database, "other")
