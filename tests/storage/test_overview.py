"""Totals, pages, improvements and curves are what Optuna says, on both databases; one query answers for many trials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Engine, event

from automl.storage import overview, trial_pages
from automl.storage.base import RunEnd
from automl.storage.lease import StudyLease
from automl.storage.runs import RunLog
from automl.storage.sql import Database, open_database
from tests.databases import fresh_postgres, fresh_sqlite
from tests.report.studies import add_study, add_verification, space_of, verification_result


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A study of 34 trials in every state, and one of which nothing is known but its space."""
    url = fresh_sqlite(tmp_path) if request.param == "sqlite" else fresh_postgres()
    with open_database(url, create=False) as opened:
        add_study(opened, space_of(tmp_path), trials=30, failed=2, running=2, importances=True)
        add_verification(opened, "topics", verification_result())
    with open_database(url, create=False, read_only=True) as reading:
        yield reading


def test_totals_are_what_optuna_says(database: Database) -> None:
    study = optuna.load_study(study_name="topics", storage=database.optuna_storage())
    (totals,) = overview.study_totals(database, ["absent", "topics", "topics"])
    states = [trial.state.name for trial in study.trials]
    assert totals.counts == {state: states.count(state) for state in set(states)}
    assert totals.best == study.best_value
    assert totals.steps == sum(trial.last_step or 0 for trial in study.trials)
    assert totals.seconds == pytest.approx(0.25 * totals.steps)
    assert (totals.direction, totals.driver, totals.runs) == ("maximize", None, 1)
    assert totals.verification is not None
    assert (totals.verification.is_done, totals.verification.seeds) == (True, 5)
    assert (totals.metric, totals.state, totals.planned) == ("accuracy", "stopped", 24)
    assert overview.study_totals(database, []) == []


def test_improvements_are_those_of_the_running_best(database: Database) -> None:
    study = optuna.load_study(study_name="topics", storage=database.optuna_storage())
    expected, best = [], float("-inf")
    for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        if trial.value is not None and trial.value > best:
            best = trial.value
            expected.append((trial.number, trial.value, "COMPLETE"))
    assert trial_pages.improvements(database, "topics") == expected


def test_pages_hold_every_trial_once_with_its_parameters(database: Database) -> None:
    study = optuna.load_study(study_name="topics", storage=database.optuna_storage())
    listed = [
        trial
        for offset in range(0, 40, 10)
        for trial in trial_pages.list_page(database, "topics", limit=10, offset=offset)
    ]
    assert [trial.number for trial in listed] == list(range(33, -1, -1))
    for line in listed:
        trial = study.trials[line.number]
        assert (line.state, dict(line.params), line.step) == (trial.state.name, trial.params, trial.last_step or 0)
        assert line.stop_reason == trial.user_attrs.get("stop_reason", "")
        if trial.state.name == "COMPLETE":
            assert line.value == trial.value
    assert trial_pages.stop_reasons(database, "topics").keys() == {"finished", "pruned", "error"}


def test_pages_can_be_ordered_and_narrowed(database: Database) -> None:
    best = trial_pages.list_page(database, "topics", order="best", limit=200)
    complete = [line.value for line in best if line.state == "COMPLETE"]
    assert [line.state for line in best[: len(complete)]] == ["COMPLETE"] * len(complete)
    assert complete == sorted(complete, reverse=True)  # type: ignore[type-var]
    running = trial_pages.list_page(database, "topics", states=("RUNNING",))
    assert [line.number for line in running] == [33, 32]
    two = trial_pages.list_page(database, "topics", states=("RUNNING", "FAIL"))
    assert {line.state for line in two} == {"RUNNING", "FAIL"}


def test_curves_sample_pace_and_importances(database: Database) -> None:
    study = optuna.load_study(study_name="topics", storage=database.optuna_storage())
    curves = trial_pages.trial_curves(database, "topics", [0, 3, 99])
    assert {n: dict(points) for n, points in curves.items()} == {n: study.trials[n].intermediate_values for n in (0, 3)}
    every = trial_pages.sampled_trials(database, "topics", 30)
    thinned = trial_pages.sampled_trials(database, "topics", 1000)
    assert set(thinned) == {place for place in every if place.number % 2 == 0}
    found = trial_pages.pace(database, "topics")
    assert found is not None
    assert found.steps == sum(trial.last_step or 0 for trial in study.trials)
    assert 0 <= found.seconds <= 300
    assert trial_pages.pace(database, "absent") is None
    standing = trial_pages.standing(database, "topics")
    assert sum(each.trials for each in standing) == len(study.trials)
    assert sum(each.step * each.trials for each in standing) == found.steps
    everything = database.importances("topics")
    assert database.importances("topics", latest=2) == {
        number: everything[number] for number in sorted(everything)[-2:]
    }


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def many(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Forty studies with runs, none of whose space files can be read, of which 7 and 23 are being driven."""
    url = fresh_sqlite(tmp_path) if request.param == "sqlite" else fresh_postgres()
    with open_database(url, create=False) as opened, ExitStack() as driving:
        for number in range(40):
            lease = StudyLease(opened, f"study-{number:02d}")
            with ExitStack() as once:
                (driving if number in (7, 23) else once).enter_context(lease)
                log = RunLog(opened, lease.study, lease.take("no space file", "0" * 64, {}), lease.verify)
                log.begin(trials=number + 1, steps=20, metric="loss")
                if number not in (7, 23):
                    log.end(RunEnd.FINISHED if number % 2 else RunEnd.TIME)
        yield opened


def test_pages_of_studies_hold_each_once_those_that_are_driven_first(many: Database) -> None:
    pages = [overview.list_studies(many, limit=16, offset=offset) for offset in (0, 16, 32, 48)]
    names = [name for page in pages for name in page]
    assert [len(page) for page in pages] == [16, 16, 8, 0]
    assert overview.count_studies(many) == len(set(names)) == 40
    assert names[:2] == ["study-23", "study-07"]
    assert names[2:] == [f"study-{number:02d}" for number in range(39, -1, -1) if number not in (7, 23)]
    assert overview.list_studies(many, limit=1, offset=1) == ["study-07"]


# A page costs what it shows: as many questions for forty studies as for one, and no space file is read.
def test_a_page_of_studies_asks_as_often_as_a_page_of_one(many: Database) -> None:
    asked: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    try:
        names = overview.list_studies(many)
        before = len(asked)
        (one,) = overview.study_totals(many, ["study-05"])
        for_one = len(asked) - before
        all_of_them = overview.study_totals(many, names)
        assert len(asked) - before == 2 * for_one
        assert not any("space_text" in statement for statement in asked)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert (one.state, one.planned, one.metric, one.direction) == ("finished", 6, "loss", "minimize")
    found = {each.study: (each.state, each.planned) for each in all_of_them}
    assert found["study-23"] == ("running", 24)
    assert found["study-04"] == ("stopped", 5)
