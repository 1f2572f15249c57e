"""Replay: the same curves through plain `study.optimize` and through our study give the same decisions."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from automl.errors import ConfigError
from automl.space.assemble import assemble
from automl.space.entries import PRUNERS
from automl.storage.sql import Database
from automl.study.distributions import suggest
from automl.study.feasibility import Feasibility
from automl.study.pruning import expected_share, make_pruner
from automl.study.sampling import make_sampler
from automl.trial import TrialSpec
from tests.study.driving import SPACE, Loop, derive, open_study, settings, trials

optuna.logging.set_verbosity(optuna.logging.WARNING)

CASES: dict[str, dict[str, Any]] = {
    "peer": {},
    "median": {"n_startup_trials": 3},
    "percentile": {"n_startup_trials": 3, "percentile": 25.0},
    "successive-halving": {},
    "hyperband": {},
    "patient": {"patience": 1, "wrapped": "none"},
    "threshold": {"upper": 1.5},
    "none": {},
}


def noisy(number: int, learning_rate: float, step: int) -> float:
    """A loss that falls, stays, or rises again, with noise that depends on trial and step only."""
    noise = random.Random(1000 * number + step).gauss(0, 0.15)
    return abs(math.log10(learning_rate / 2e-3)) + math.exp(-step / 30) + noise + (step / 80 if number % 4 == 3 else 0)


def through_optuna(search: Any) -> list[tuple[TrialState, float | None, list[int], dict[str, Any]]]:
    sampler = make_sampler(search, SPACE, Feasibility(SPACE, derive), run=1)
    study = optuna.create_study(study_name="study", sampler=sampler, pruner=make_pruner(search))

    def objective(trial: optuna.Trial) -> float:
        learning_rate = assemble(SPACE, suggest(trial, SPACE)).learning_rate
        value = math.nan
        for step in range(search.evaluate_every, search.steps + 1, search.evaluate_every):
            value = noisy(trial.number, learning_rate, step)
            trial.report(value, step)
            if step < search.steps and trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=search.trials)
    return history(study.trials)


def history(done: list[optuna.trial.FrozenTrial]) -> list[tuple[TrialState, float | None, list[int], dict[str, Any]]]:
    return [(trial.state, trial.value, sorted(trial.intermediate_values), trial.params) for trial in done]


@pytest.mark.parametrize("pruner", list(CASES))
def test_decisions_equal_those_of_optuna_itself(pruner: str, database: Database) -> None:
    search = settings(trials=16, sampler="tpe", pruner=pruner, pruner_options=CASES[pruner])
    expected = through_optuna(search)

    def curve(spec: TrialSpec, step: int) -> float:
        return noisy(spec.number, spec.hyper.learning_rate, step)

    study = open_study(database, settings=search)
    Loop(study, curve).run()
    assert history(trials(study)) == expected
    pruned = [state for state, *_ in expected if state is TrialState.PRUNED]
    assert bool(pruned) == (pruner != "none"), "the case must prune something to show anything"


def test_every_pruner_is_covered() -> None:
    assert {*CASES, "halving"} == {*PRUNERS.built_in}, "halving parks, which Optuna's own loop cannot"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": "medain"}, r"search.pruner: unknown 'medain'; known: halving, .* \(did you mean 'median'\?\)"),
        (
            {"pruner": "peer", "pruner_options": {"rungs": 3}},
            "search.pruner_options: unknown 'rungs'; known: first_rung",
        ),
        ({"pruner": "peer", "pruner_options": {"guard": -1}}, "guard >= 0, but got .*guard=-1"),
        ({"pruner": "threshold"}, "threshold needs lower, upper or both"),
        (
            {"pruner": "hyperband", "pruner_options": {"min_resource": 100}},
            "min_resource 100 is not in 1 ... max_resource 80",
        ),
        (
            {"pruner": "patient", "pruner_options": {"wrapped": "patient"}},
            "'patient' is not known; known: peer,",
        ),
    ],
    ids=["name", "option", "value", "threshold", "hyperband", "wrapped"],
)
def test_unusable_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_pruner(settings(**changes))


def test_expected_share_of_the_steps() -> None:
    # 80 steps, rungs at 20 and 40: 20 + 20 / 3 + 40 / 9 of 80.
    assert expected_share(settings(pruner="peer")) == pytest.approx((20 + 20 / 3 + 40 / 9) / 80)
    assert expected_share(settings(pruner="peer", steps=20)) == 1.0
    assert expected_share(settings(pruner="median")) is None
    # one in 2.2 goes on at the first rung, and 3 of 8 trials at the second, one in 2.2 being fewer
    assert expected_share(settings(pruner="halving")) == pytest.approx((20 + 20 / 2.2 + 40 * 3 / 8) / 80)
