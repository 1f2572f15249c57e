"""Samplers see parked trials as pruned, and the driver's storage says what the database says."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from automl.storage.optuna_cache import CachedStorage
from automl.storage.sql import Database
from automl.study.shown import ShownTrials, parked_as_pruned, unfinished_as_complete

SPACE = {"x": FloatDistribution(0.0, 1.0)}


class Looking(RandomSampler):
    """Notes the states it is shown."""

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, object]:  # type: ignore[override]
        self.seen = {item.number: item.state for item in study._get_trials(deepcopy=False, use_cache=True)}
        self.finished = [item.number for item in study.get_trials(states=(TrialState.PRUNED,))]
        return {}


def test_parked_trials_are_shown_as_pruned() -> None:
    looking = Looking(seed=0)
    parked = {1}
    study = optuna.create_study(sampler=ShownTrials(looking, parked_as_pruned(lambda: parked)))
    for _ in range(3):
        study.ask(SPACE).report(0.5, 1)
    study.ask(SPACE)
    assert {number: state.name for number, state in looking.seen.items()} == {
        0: "RUNNING",
        1: "PRUNED",
        2: "RUNNING",
        3: "RUNNING",
    }
    assert looking.finished == [1]
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] * 4, "the study itself is unchanged"


def test_the_same_proposals_as_if_they_had_been_pruned() -> None:
    def proposals(*, really: bool) -> list[float]:
        values: list[float] = []
        base = TPESampler(seed=3, n_startup_trials=4)
        view = parked_as_pruned(lambda: set(range(len(values))))
        study = optuna.create_study(sampler=base if really else ShownTrials(base, view))
        for _ in range(12):
            trial = study.ask(SPACE)
            values.append(trial.params["x"])
            trial.report((values[-1] - 0.3) ** 2, 1)
            if really:
                study.tell(trial, state=TrialState.PRUNED)
        return values

    assert proposals(really=False) == proposals(really=True)


def test_unfinished_trials_are_expected_to_change_as_those_that_went_on() -> None:
    study = optuna.create_study()
    curves = [{10: 1.0, 20: 0.5, 40: 0.2}, {10: 1.2, 20: 0.9}, {10: 2.0, 20: 1.9}, {10: 3.0}, {10: 1.1}, {}, {10: 9.0}]
    states = [TrialState.COMPLETE, TrialState.PRUNED, None, TrialState.PRUNED, TrialState.FAIL, None, TrialState.PRUNED]
    for curve, state in zip(curves, states, strict=True):
        trial = study.ask(SPACE)
        for step, value in curve.items():
            trial.report(value, step)
        if curve == {10: 9.0}:
            trial.set_constraint("finite", 1.0)
        if state is not None:
            study.tell(trial, curve[40] if state is TrialState.COMPLETE else None, state=state)
    shown = unfinished_as_complete(study.get_trials(deepcopy=False))
    # medians: -0.3 from 10 to 20, -0.3 from 20 to 40
    expected = [("COMPLETE", 0.2), ("COMPLETE", 0.6), ("COMPLETE", 1.6), ("COMPLETE", 2.4), ("FAIL", 0.5)]
    expected += [("RUNNING", None), ("PRUNED", 8.4)]
    assert [trial.state.name for trial in shown] == [state for state, _ in expected]
    assert [trial.value for trial in shown] == pytest.approx([value for _, value in expected])
    assert study.get_trials()[1].state is TrialState.PRUNED, "the study itself is unchanged"


def test_the_storage_says_what_the_database_says(database: Database) -> None:
    ours = CachedStorage(database.optuna_storage())
    study = optuna.create_study(storage=ours, study_name="study", sampler=RandomSampler(seed=0))
    study.enqueue_trial({"x": 0.25}, user_attrs={"known": True})
    for state in (TrialState.COMPLETE, TrialState.PRUNED, None):
        trial = study.ask(SPACE)
        trial.report(0.5, 1)
        trial.report(0.25, 2)
        trial.set_user_attr("seconds", 1.5)
        trial.set_constraint("finite", 1.0)
        if state is not None:
            study.tell(trial, 0.25 if state is TrialState.COMPLETE else None, state=state)
    kept = study.get_trials()
    stored = optuna.load_study(storage=database.optuna_storage(), study_name="study").get_trials()
    assert kept == stored


def test_what_was_returned_is_not_changed_later(database: Database) -> None:
    study = optuna.create_study(storage=CachedStorage(database.optuna_storage()), sampler=RandomSampler(seed=0))
    trial = study.ask(SPACE)
    before = study.get_trials(deepcopy=False)
    trial.report(1.0, 1)
    assert before[0].intermediate_values == {}
    assert study.get_trials(deepcopy=False)[0].intermediate_values == {1: 1.0}


def test_a_trial_that_was_there_before_is_known(database: Database) -> None:
    first = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    old = first.ask(SPACE)
    again = optuna.load_study(storage=CachedStorage(database.optuna_storage()), study_name="study")
    assert [trial.number for trial in again.get_trials()] == [0]
    optuna.Trial(again, old._trial_id).report(2.0, 1)
    assert again.get_trials()[0].intermediate_values == {1: 2.0}
