"""A study of a space with finitely many configurations ends when all have been tried, and says so."""

from __future__ import annotations

import pytest

from automl.space.spec import CategoricalParameter, SearchSpace
from automl.storage.sql import Database
from automl.study.outcome import EXHAUSTED
from tests.study.driving import Loop, open_study, settings, trials

TWO = SearchSpace(parameters=(CategoricalParameter(name="target", choices=("qv", "all-linear")),))


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("pruner", ["none", "halving"])
def test_every_configuration_is_trained_once_and_the_search_ends(database: Database, sampler: str, pruner: str) -> None:
    chosen = settings(sampler=sampler, pruner=pruner, trials=6)
    for run in (1, 2):
        study = open_study(database, space=TWO, settings=chosen, run=run)
        Loop(study, slots=2).run()
    assert sorted(trial.params["target"] for trial in trials(study)) == ["all-linear", "qv"]
    events = [detail for _, kind, detail in database.store("study").events() if kind == EXHAUSTED]
    assert events == [{"configurations": 2, "run": run} for run in (1, 2)]
