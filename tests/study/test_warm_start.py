"""Warm start from an earlier study, and the end when nothing better comes."""

from __future__ import annotations

import copy

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as State

from automl.errors import ConfigError
from automl.space.spec import IntParameter, SearchSpace
from automl.storage.sql import Database
from automl.study.outcome import STALLED
from automl.study.stopping import Stall
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


def curves(*each: dict[int, float]) -> list[FrozenTrial]:
    """Trials with these values by step; the first is COMPLETE, the others are RUNNING."""
    made = []
    for number, curve in enumerate(each):
        state = State.RUNNING if number else State.COMPLETE
        trial = create_trial(state=state, intermediate_values=curve, value=None if number else 0.0)
        trial.number = number
        made.append(trial)
    return made


LEADER = {20: 1.9, 40: 1.5, 120: 0.6}


@pytest.mark.parametrize(
    ("others", "parked", "stalled"),
    [
        ([{20: 0.9}, {20: 1.0}, {20: 1.1}], {1, 2, 3}, False),  # twice as good as the leader was then
        ([{20: 2.0}, {20: 2.1}, {20: 2.2}], {1, 2, 3}, True),
        ([{20: 2.0}, {20: 2.1}, {20: 2.2}], {1, 2}, False),  # the third has only begun
        ([{10: 2.3}] * 8, set(), False),
        ([{20: 1.0}, {20: 1.1}, {20: 1.2}, {20: 1.3}], {1, 2, 3, 4}, True),  # none is better than the first of them
        ([{20: 1.0, 40: 1.6}, {20: 1.1}, {20: 1.2}], {1, 2, 3}, True),  # it led at 20, and has fallen behind since
        ([{20: 1.0, 40: 1.4}, {20: 1.1}, {20: 1.2}], {1, 2, 3}, False),
    ],
    ids=["better-then", "worse-then", "one-running", "just-begun", "since-the-second", "fallen-behind", "still-ahead"],
)
def test_trials_are_compared_at_equal_steps(others: list[dict[int, float]], parked: set[int], stalled: bool) -> None:
    stall = Stall([StudyDirection.MINIMIZE], 3)
    assert stall.has_come(curves(LEADER, *others), parked) is stalled


def test_a_first_wave_does_not_end_a_search(database: Database) -> None:
    study = open_study(database, settings=settings(trials=100, patience=8, pruner="halving"))
    loop = Loop(study, lambda spec, step: 1.0 + spec.number - step / 1000, slots=9)
    loop.fill()
    loop.report()
    loop.decide()
    assert len(study.live) == 9
    assert study.next(worker=0) is not None, "none of the nine has ended or was parked"


def test_what_diverged_is_no_measure_for_others() -> None:
    trials = curves(LEADER, {20: 0.1, 40: 0.1}, {20: 1.0}, {20: 1.1})
    parked = {2, 3}
    stall = Stall([StudyDirection.MINIMIZE], 2)
    assert stall.has_come(trials, parked), "the second, which still runs, was far better than all after it"
    trials[1] = copy.copy(trials[1])
    trials[1].state, trials[1].user_attrs = State.PRUNED, {"stop_reason": "diverged"}
    assert not stall.has_come(trials, parked)
    assert not Stall([StudyDirection.MINIMIZE], 2).has_come(trials, parked)


def test_the_best_of_each_study_that_is_learnt_from_is_tried_first_and_no_more(database: Database) -> None:
    for name, seed in (("older", 1), ("newer", 2)):
        search = settings(pruner="none", seed=seed)
        Loop(open_study(database, name=name, store=database.store(name), settings=search)).run()
    search = settings(learn_from=("newer", "older"), trials=5, pruner="none", seed=3)
    study = open_study(database, settings=search)
    Loop(study).run()
    assert [trial.user_attrs.get("warm_start") for trial in trials(study)] == ["newer", "older", None, None, None]
    for trial in trials(study)[:2]:
        earlier = open_study(database, name=trial.user_attrs["warm_start"], store=database.store("other"), run=2)
        assert trial.params == min(trials(earlier), key=lambda each: each.value or 9.0).params
    assert len(trials(open_study(database, settings=search, run=2))) == 5
