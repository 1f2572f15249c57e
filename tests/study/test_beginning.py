"""Warm start from an earlier study, and the end when nothing better comes."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState as State

from automl.errors import ConfigError
from automl.space.spec import IntParameter, SearchSpace
from automl.storage.sql import Database
from automl.study.study import STALLED
from automl.trial import TrialState
from tests.study.driving import SPACE, Loop, open_study, settings, trials


def test_the_best_configurations_of_an_earlier_study_are_trained_again(database: Database) -> None:
    earlier = open_study(database, name="earlier", store=database.store("earlier"), settings=settings(pruner="none"))
    Loop(earlier).run()
    study = open_study(database, settings=settings(warm_start="earlier", trials=4, pruner="none"))
    assert {trial.state for trial in trials(study)} == {State.WAITING}, "no value is taken over"
    Loop(study).run()
    best = sorted(trials(earlier), key=lambda trial: trial.value or 9.0)[:3]
    assert [trial.params for trial in trials(study)[:3]] == [trial.params for trial in best]
    assert [trial.user_attrs.get("warm_start") for trial in trials(study)] == ["earlier"] * 3 + [None]
    assert study.counts()[TrialState.COMPLETE] == 4


def test_a_warm_start_is_made_once(database: Database) -> None:
    earlier = open_study(database, name="earlier", store=database.store("earlier"), settings=settings(trials=4))
    Loop(earlier).run()
    search = settings(warm_start="earlier", trials=6)
    first = open_study(database, settings=search)
    number = len(trials(first))
    assert len(trials(open_study(database, settings=search, run=2))) == number


def test_what_lies_outside_of_the_space_is_sampled(database: Database) -> None:
    from dataclasses import replace

    earlier = open_study(database, name="earlier", store=database.store("earlier"), settings=settings(pruner="none"))
    Loop(earlier).run()
    narrow = replace(SPACE, parameters=tuple(p for p in SPACE.parameters if p.name != "target"))
    study = open_study(database, space=narrow, settings=settings(warm_start="earlier", trials=3, pruner="none"))
    Loop(study).run()
    assert all(trial.params.keys() == {"rank", "learning_rate"} for trial in trials(study))


@pytest.mark.parametrize(
    ("parameter", "remark"),
    [
        (IntParameter(name="batch_size", low=4, high=8), "nothing of study 'earlier' lies in this space (batch_size)"),
        (IntParameter(name="rank", low=2, high=64, log=True), "3 configurations of study 'earlier' are tried first,"),
    ],
    ids=["nothing", "a part"],
)
def test_what_another_study_cannot_lend_is_said(
    database: Database, caplog: pytest.LogCaptureFixture, parameter: IntParameter, remark: str
) -> None:
    earlier = open_study(database, name="earlier", store=database.store("earlier"), settings=settings(pruner="none"))
    Loop(earlier).run()
    space = SearchSpace(parameters=(parameter,))
    for run in (1, 2):
        open_study(database, space=space, settings=settings(warm_start="earlier", trials=4), run=run)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1, "once"
    assert remark in said[0]


def test_a_study_without_a_complete_trial_lends_nothing_and_says_so(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    open_study(database, name="earlier", store=database.store("earlier"))
    open_study(database, settings=settings(warm_start="earlier"))
    assert "study 'earlier' has no complete trial" in caplog.text


def test_an_unknown_earlier_study_is_named(database: Database) -> None:
    with pytest.raises(ConfigError, match=r"search\.warm_start: there is no study 'earlier' in the database"):
        open_study(database, settings=settings(warm_start="earlier"))


@pytest.mark.parametrize("pruner", ["none", "halving"])
def test_a_search_ends_when_nothing_better_comes(database: Database, pruner: str) -> None:
    search = settings(trials=100, patience=4, pruner=pruner)
    study = open_study(database, settings=search)
    Loop(study, lambda spec, step: 1.0 + spec.number).run()
    assert len(trials(study)) == 5, "the first is the best, four more were waited for"
    assert study.counts()[TrialState.COMPLETE] >= 1
    assert [kind for _, kind, _ in database.store("study").events()].count(STALLED) == 1
    again = open_study(database, settings=search, run=2)
    assert again.finished


def test_more_patience_continues_a_search(database: Database) -> None:
    Loop(open_study(database, settings=settings(trials=9, patience=2)), lambda spec, step: 1.0 + spec.number).run()
    again = open_study(database, settings=settings(trials=9, patience=5), run=2)
    assert not again.finished
