"""Samplers that learn do so whatever the pruner leaves untrained, and survive what becomes of the trials."""

from __future__ import annotations

import math
import statistics

import pytest
from optuna.trial import TrialState

from automl.space.spec import CategoricalParameter, FloatParameter, SearchSpace
from automl.storage.sql import Database
from automl.trial import StopReason, TrialFailure, TrialSpec
from tests.study.driving import Loop, bowl, open_study, settings, trials

RATES = SearchSpace(
    parameters=(
        FloatParameter(name="learning_rate", low=1e-5, high=1e-1, log=True),
        FloatParameter(name="dropout", low=0.0, high=0.5),
        CategoricalParameter(name="target", choices=("qv", "all-linear")),
    )
)


def distances(database: Database, sampler: str, pruner: str, count: int) -> list[float]:
    """Decades between the learning rate of each trial and the best one, 2e-3, in the order of proposal."""
    chosen = settings(sampler=sampler, pruner=pruner, trials=count, steps=40, seed=3)
    study = open_study(database, space=RATES, settings=chosen)
    Loop(study, slots=2).run()
    return [abs(math.log10(trial.params["learning_rate"] / 2e-3)) for trial in trials(study)]


@pytest.mark.parametrize(
    ("sampler", "pruner", "count"),
    [
        ("gp", "halving", 20),
        ("cmaes", "successive-halving", 30),
        ("nsga2", "halving", 30),
        ("nsga2", "peer", 30),
    ],
)
def test_later_proposals_are_nearer_to_the_optimum(database: Database, sampler: str, pruner: str, count: int) -> None:
    found = distances(database, sampler, pruner, count)
    assert len(found) == count
    assert statistics.median(found[-count // 3 :]) < 0.6 * statistics.median(found[:10])


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_a_trial_that_a_sampler_has_built_on_may_still_fail(database: Database, sampler: str) -> None:
    """A parked trial is a parent of the next generation; promoted, it fails or diverges."""
    chosen = settings(sampler=sampler, pruner="halving", trials=24, max_failed_trials=100)
    study = open_study(database, settings=chosen)
    loop = Loop(study, slots=3)
    while not study.finished:
        loop.fill()
        loop.report()
        for number, measurement in list(study.latest.items()):
            if measurement.step > 20 and number % 3:
                reason = StopReason.ERROR if number % 3 == 1 else StopReason.DIVERGED
                study.fail(TrialFailure(trial=number, step=measurement.step, reason=reason, message="for the test"))
        loop.decide()
    study.close()
    ended = [trial.state for trial in trials(study)]
    assert TrialState.FAIL in ended
    assert ended.count(TrialState.RUNNING) == 0


def test_cmaes_may_be_told_to_learn_from_complete_trials_only(database: Database) -> None:
    def proposals(name: str, **options: bool) -> list[float]:
        chosen = settings(sampler="cmaes", pruner="halving", trials=12, sampler_options=options)
        study = open_study(database, name=name, store=database.store(name), settings=chosen)
        Loop(study, curve).run()
        return [trial.params["learning_rate"] for trial in trials(study)]

    def curve(spec: TrialSpec, step: int) -> float:
        return bowl(spec, step)

    assert proposals("default") == proposals("all", consider_pruned_trials=True)
    assert proposals("default") != proposals("complete", consider_pruned_trials=False)
