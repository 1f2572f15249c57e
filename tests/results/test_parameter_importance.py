"""Importance of parameters: finds what matters, says how sure it is, and keeps silent where it cannot know."""

from __future__ import annotations

import random

import optuna
import pytest

from automl.results.parameter_importance import FEWEST_TRIALS, ParameterImportance, parameter_importance
from automl.study.outcome import BEST_CHECKPOINT


def importance(trials: int, *, direction: str = "maximize", overfit: bool = False) -> ParameterImportance:
    """Of a study in which only the learning rate matters; every second trial is pruned after step 10.

    overfit: the others are worth step 10, have come to the same by step 20, and half of them ended themselves there.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    generator = random.Random(5)
    sign = 1.0 if direction == "maximize" else -1.0
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=5))
    for number in range(trials):
        trial = study.ask()
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        trial.suggest_int("rank", 2, 32)
        value = sign * (-(abs(rate - 0.003) ** 0.3) + generator.gauss(0, 0.02))
        trial.report(value, 10)
        if number % 2:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            if overfit:
                trial.set_user_attr(BEST_CHECKPOINT, {"step": 10})
                trial.report(-sign, 20)
            if not overfit or number % 4:
                trial.report(-sign if overfit else value, 30)
            study.tell(trial, value)
    return parameter_importance(study._storage, study.study_name)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_parameter_that_matters_comes_first_and_its_interval_apart(direction: str) -> None:
    found = importance(60, direction=direction)
    for shares in found.shares.values():
        (first, top), (_, second) = shares.items()
        assert first == "learning_rate"
        assert top.low > second.mean
        assert top.low <= top.mean <= top.high
        assert top.mean + second.mean == pytest.approx(1.0)


def test_pruned_trials_count_at_the_step_they_reached() -> None:
    # Thirty of sixty trials reach step 30: half of them, so that is the step; of thirty trials only fifteen do.
    assert (importance(60).step, importance(60).trials) == (30, 30)
    assert (importance(12).step, importance(12).trials) == (10, 12)


def test_trials_that_overfit_are_compared_by_what_they_are_worth() -> None:
    assert importance(60, overfit=True) == importance(60)


def test_too_few_trials_say_nothing() -> None:
    found = importance(FEWEST_TRIALS - 1)
    assert not found.shares
    assert f"{FEWEST_TRIALS - 1} comparable trials" in found.note


def test_a_study_without_trials_says_nothing() -> None:
    study = optuna.create_study()
    assert not parameter_importance(study._storage, study.study_name).shares


def test_the_same_trials_give_the_same_answer() -> None:
    assert importance(24) == importance(24)
