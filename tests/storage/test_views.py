"""The ready views answer plain questions, with the same result on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import text

from automl.storage.runs import Price, RunLog
from automl.storage.spending import spent_by
from automl.storage.sql import Database
from tests.storage.sweeps import CURVES, STUDY, finished_sweep


@pytest.fixture
def swept(database: Database, tmp_path: Path) -> Database:
    finished_sweep(database, tmp_path / "adapters")
    return database


def ask(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.reading("ask") as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_leaderboard_ranks_complete_trials_best_first(swept: Database) -> None:
    query = "SELECT place, trial, state, value, best_value, steps, seconds, tokens, attempts, stop_reason"
    rows = ask(swept, f"{query} FROM automl_leaderboard WHERE study_name = '{STUDY}' ORDER BY trial")
    assert rows == [
        (2, 0, "COMPLETE", 0.7, 0.7, 30, 7.5, 3000, 1, "finished"),
        (None, 1, "PRUNED", 0.2, 0.2, 10, 2.5, 1000, 1, "pruned"),
        (1, 2, "COMPLETE", 0.8, 0.8, 30, 7.5, 3000, 1, "finished"),
        (None, 3, "PRUNED", None, None, None, None, None, 1, "diverged"),
        (None, 4, "FAIL", None, None, None, None, None, 1, "error"),
    ]


def test_leaderboard_decodes_parameters(swept: Database) -> None:
    ((params,),) = ask(swept, "SELECT params FROM automl_leaderboard WHERE trial = 2")
    decoded = json.loads(params) if isinstance(params, str) else params
    assert decoded == {"rank": 6, "learning_rate": 0.001, "target": "qv", "use_rslora": True}
    assert ask(swept, "SELECT params ->> 'target' FROM automl_leaderboard ORDER BY trial")[1] == ("all-linear",)


def test_leaderboard_names_the_adapter_that_is_kept(swept: Database, tmp_path: Path) -> None:
    query = "SELECT trial, adapter FROM automl_leaderboard WHERE adapter IS NOT NULL"
    assert ask(swept, query) == [(2, str(tmp_path / "adapters/trial-00002"))]
    swept.store(STUDY).delete_artifact(2, "adapter")
    assert ask(swept, query) == []


@pytest.mark.parametrize(("direction", "order"), [("minimize", [1, 2, 2]), ("maximize", [3, 1, 1])])
def test_place_follows_the_direction_and_shares_ties(database: Database, direction: str, order: list[int]) -> None:
    study = optuna.create_study(study_name="ties", storage=database.optuna_storage(), direction=direction)
    for value in (1.0, 2.0, 2.0):
        study.tell(study.ask(), value)
    assert [place for (place,) in ask(database, "SELECT place FROM automl_leaderboard ORDER BY trial")] == order


def test_curves_hold_every_metric_at_every_step(swept: Database) -> None:
    query = "SELECT trial, step, value FROM automl_curves WHERE metric = 'accuracy' ORDER BY trial, step"
    expected = [(trial, 10 * i, value) for trial, curve in CURVES.items() for i, value in enumerate(curve, start=1)]
    assert ask(swept, query) == expected
    assert ask(swept, "SELECT COUNT(*) FROM automl_curves WHERE metric = 'loss'") == [(len(expected),)]


def test_spent_tells_what_pruned_trials_have_cost(swept: Database) -> None:
    assert ask(swept, "SELECT * FROM automl_spent ORDER BY state") == [
        (STUDY, "COMPLETE", 2, 60, 15.0, 6000, 480),
        (STUDY, "FAIL", 1, 0, 0.0, 0, 0),
        (STUDY, "PRUNED", 2, 10, 2.5, 1000, 80),
    ]


def test_what_devices_cost_is_shared_out_among_trials(swept: Database) -> None:
    """Each run at its price, one without a price at the newest; a trial's share is that of its training time."""
    assert ask(swept, "SELECT device_seconds, cost FROM automl_leaderboard WHERE trial = 0") == [(None, None)]
    for number, price, seconds in ((1, None, 90.0), (2, Price(3600, "EUR"), 10.0), (3, Price(7200, "EUR"), 5.0)):
        log = RunLog(swept, STUDY, number, lambda connection: None)
        log.begin(trials=5, steps=30, metric="accuracy", price=price)
        log.spend(seconds / 2)
        log.spend(seconds)
    assert ask(swept, "SELECT * FROM automl_costs") == [(STUDY, 105.0, pytest.approx(180 + 10 + 10), "EUR")]
    rows = ask(swept, "SELECT trial, examples, device_seconds, cost FROM automl_leaderboard ORDER BY trial")
    assert rows == [
        (0, 240, pytest.approx(45.0), pytest.approx(600 / 7)),
        (1, 80, pytest.approx(15.0), pytest.approx(200 / 7)),
        (2, 240, pytest.approx(45.0), pytest.approx(600 / 7)),
        (3, None, None, None),
        (4, None, None, None),
    ]
    found = spent_by(swept, [STUDY])[STUDY]
    assert (found.device_hours, found.tokens, found.examples) == (105 / 3600, 7000, 560)
    assert (found.cost, found.currency) == (pytest.approx(200), "EUR")


def test_running_and_foreign_trials_are_shown_too(database: Database) -> None:
    study = optuna.create_study(study_name="plain", storage=database.optuna_storage())
    trial = study.ask()
    trial.report(0.5, 3)
    rows = ask(database, "SELECT study_name, place, trial, state, value, best_value, params FROM automl_leaderboard")
    assert rows == [("plain", None, 0, "RUNNING", None, 0.5, None)]
