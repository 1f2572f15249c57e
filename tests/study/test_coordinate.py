"""A study whose learning rates are searched at an alpha: what it is told, what it refuses, what it is lent."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from automl.errors import SpaceChangedError
from automl.space.spec import FloatParameter, IntParameter, SearchSpace
from automl.storage.sql import Database
from automl.storage.trials import list_trials
from automl.study.study import Study
from automl.study.warm_start import best_of_earlier
from tests.study.driving import Loop, open_study, settings

RATE = FloatParameter(name="learning_rate", low=1e-4, high=1e-2, log=True)
PLAIN = SearchSpace(parameters=(IntParameter(name="rank", low=2, high=32, log=True), RATE), fixed={"alpha_ratio": 1.0})
AT_32 = replace(PLAIN, parameters=(PLAIN.parameters[0], replace(RATE, low=1e-5, high=1.0, at_alpha=32.0)))


def run(database: Database, space: SearchSpace) -> Study:
    study = open_study(database, space=space, settings=settings(pruner="none", trials=4))
    Loop(study).run()
    return study


def test_trials_know_both_rates(database: Database) -> None:
    run(database, AT_32)
    rows = list_trials(database, "study")
    assert len(rows) == 4
    for row in rows:
        rate, rank = float(row.params["learning_rate"]), int(row.params["rank"])
        assert row.trained_rate == pytest.approx(rate * math.sqrt(32 / rank))


def test_without_a_coordinate_there_is_one_rate(database: Database) -> None:
    study = run(database, PLAIN)
    assert all(row.trained_rate is None for row in list_trials(database, "study"))
    assert "at_alpha" not in study.optuna.user_attrs


@pytest.mark.parametrize(("before", "now"), [(PLAIN, AT_32), (AT_32, PLAIN)])
def test_a_study_keeps_its_coordinate(database: Database, before: SearchSpace, now: SearchSpace) -> None:
    run(database, before)
    with pytest.raises(SpaceChangedError, match="its values would mean other rates; choose another study name"):
        open_study(database, space=now, run=2)
    open_study(database, space=before, run=2)


def test_a_coordinate_that_was_changed_before_any_trial_is_forgotten(database: Database) -> None:
    open_study(database, space=AT_32)
    run(database, PLAIN)
    open_study(database, space=PLAIN, run=3)
    with pytest.raises(SpaceChangedError, match="choose another study name"):
        open_study(database, space=AT_32, run=4)


@pytest.mark.parametrize(("before", "now"), [(PLAIN, AT_32), (AT_32, PLAIN), (AT_32, AT_32), (PLAIN, PLAIN)])
def test_what_is_lent_is_trained_with_the_rate_it_had(
    database: Database, before: SearchSpace, now: SearchSpace
) -> None:
    run(database, before)
    trained = {
        int(row.params["rank"]): row.trained_rate or float(row.params["learning_rate"])
        for row in list_trials(database, "study")
    }
    wide = replace(now, parameters=(now.parameters[0], replace(now.parameters[1], low=1e-6, high=10.0)))
    loan = best_of_earlier(database.optuna_storage(), "study", wide)
    assert loan.configurations
    for params in loan.configurations:
        factor = math.sqrt(32 / int(params["rank"])) if now is AT_32 else 1.0
        assert float(params["learning_rate"]) * factor == pytest.approx(trained[int(params["rank"])])
