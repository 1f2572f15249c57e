"""Studies that minimise trainable parameters or time beside the metric: the front, adapters, resuming, patience."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState as State

from automl.errors import ConfigError, SpaceChangedError
from automl.ranking import Point, pareto_front, ranked
from automl.storage.invariants import check
from automl.storage.sql import Database
from automl.storage.trials import list_trials
from automl.trial import StopReason, TrialFailure, TrialSpec, TrialState
from tests.study.driving import SPACE, Loop, bowl, constrained, measured, numbers, open_study, settings, trials


def two(**changes: Any) -> Any:
    return settings(**{"pruner": "none", "also_minimize": "trainable_params", **changes})


def by_definition(points: Sequence[Point]) -> list[Point]:
    """The front from pairwise comparison, the earliest of equals."""

    def beats(one: Point, other: Point) -> bool:
        if (one.loss, one.size) == (other.loss, other.size):
            return one.trial < other.trial
        return one.loss <= other.loss and one.size <= other.size

    return sorted((p for p in points if not any(beats(q, p) for q in points)), key=lambda point: point.size)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_its_definition_says(seed: int) -> None:
    generator = random.Random(seed)
    points = [Point(generator.randrange(6) / 4, generator.randrange(6) * 10.0, number) for number in range(30)]
    assert pareto_front(points) == by_definition(points)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "gp"])
def test_every_trial_is_given_both_objectives(database: Database, sampler: str) -> None:
    options = {"n_startup_trials": 4} if sampler in ("tpe", "gp") else {}
    study = open_study(database, settings=two(trials=10, sampler=sampler, sampler_options=options))
    Loop(study, slots=3).run()
    assert study.optuna.directions == [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    assert study.optuna.metric_names == ["loss", "trainable_params"]
    for trial in trials(study):
        assert trial.state is State.COMPLETE
        assert trial.values == [trial.intermediate_values[80], trial.user_attrs["trainable_params"]]
    assert check(database, "study", finished=True, max_trials=10) == []


def test_seconds_are_those_of_the_last_measurement(database: Database) -> None:
    study = open_study(database, settings=two(trials=3, also_minimize="seconds"))
    Loop(study).run()
    assert [trial.values[1] for trial in trials(study)] == [8.0, 8.0, 8.0]
    assert [row.size for row in list_trials(database, "study")] == [8.0, 8.0, 8.0]


def test_the_best_is_the_best_by_the_metric_and_of_equals_the_smallest(database: Database) -> None:
    study = open_study(database, settings=two(trials=8))
    Loop(study, lambda spec, step: 1.0 if spec.number < 2 else 0.5).run()
    best = study.best()
    assert best is not None
    smallest = min(trials(study)[2:], key=lambda trial: (trial.values[1], trial.number))
    assert best.number == smallest.number
    assert ranked(list_trials(database, "study"), "minimize")[0].number == best.number


def test_adapters_of_the_front_stay_beside_the_best(database: Database) -> None:
    retired: list[int] = []
    study = open_study(database, settings=two(trials=12, keep=2), retire=retired.append)
    # The smaller, the worse: the more of a front. Half of the trials are worse than that.
    Loop(study, lambda spec, step: (spec.number % 2) + 1 / spec.hyper.rank, adapters=True).run()
    points = [Point(trial.values[0], trial.values[1], trial.number) for trial in trials(study)]
    wanted = {point.trial for point in [*by_definition(points), *sorted(points)[:2]]}
    assert len(wanted) > 2
    assert {artifact.trial for artifact in database.store("study").artifacts()} == wanted
    assert set(retired) == set(range(12)) - wanted


def test_a_killed_driver_leaves_a_study_that_goes_on_the_same(database: Database) -> None:
    def curve(spec: TrialSpec, step: int) -> float:
        return bowl(spec, step)

    first = Loop(open_study(database, settings=two(trials=6)), curve, slots=2)
    for _ in range(11):
        first.fill()
        first.report()
        first.decide()
    first.fill()
    first.report()  # stored, and not decided on: here the driver dies
    second = Loop(open_study(database, settings=two(trials=6), run=2), curve, slots=2, done=dict(first.done))
    second.run()
    found = trials(second.study)
    assert numbers(second.study, State.COMPLETE) == [0, 1, 2, 3, 4, 5]
    assert all(len(trial.values) == 2 and len(trial.intermediate_values) == 8 for trial in found)
    assert check(database, "study", finished=True, max_trials=6) == []


def test_a_finished_study_opens_again_with_its_best(database: Database) -> None:
    study = open_study(database, settings=two(trials=6))
    Loop(study).run()
    again = open_study(database, settings=two(trials=6), run=2)
    assert again.finished
    assert again.best() == study.best()


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_diverged_and_cut_off_trials_do_not_stop_the_sampler(database: Database, sampler: str) -> None:
    search = two(trials=14, sampler=sampler, sampler_options={"n_startup_trials": 3} if sampler == "tpe" else {})
    study = open_study(database, settings=search, space=constrained(SPACE, "trainable_params < 60_000"))
    while study.counts()[TrialState.COMPLETE] < 6:
        spec = study.next(0)
        assert spec is not None
        if spec.number in (1, 4):
            study.report([measured(spec, 10, 0.5)])
            study.fail(TrialFailure(trial=spec.number, step=20, reason=StopReason.DIVERGED, message="loss is nan"))
            continue
        study.report([measured(spec, step, bowl(spec, step)) for step in range(10, 90, 10)])
        study.decide([spec.number])
    cut = study.next(0)
    assert cut is not None
    study.report([measured(cut, 10, 0.7)])
    study.close()
    assert trials(study)[cut.number].state is State.FAIL
    more = open_study(database, settings=search, run=2)
    Loop(more).run()
    assert more.counts()[TrialState.COMPLETE] == 12
    rows = {row.number: row for row in list_trials(database, "study")}
    assert rows[1].state is TrialState.PRUNED
    assert rows[1].value == 0.5, "Optuna keeps no value of a pruned trial where there are two objectives"
    assert check(database, "study", finished=True, max_trials=14) == []


def test_patience_counts_trials_that_did_not_move_the_front(database: Database) -> None:
    study = open_study(database, settings=two(trials=40, patience=5))
    Loop(study, lambda spec, step: 1.0 + spec.number).run()
    points = [Point(trial.values[0], trial.values[1], trial.number) for trial in trials(study)]
    last = max(point.trial for point in by_definition(points))
    assert len(points) == last + 6 < 40


def test_an_earlier_study_of_two_objectives_lends_its_best(database: Database) -> None:
    earlier = open_study(database, name="earlier", store=database.store("earlier"), settings=two(trials=6))
    Loop(earlier).run()
    study = open_study(database, settings=settings(trials=3, warm_start="earlier", pruner="none"))
    Loop(study).run()
    best = sorted(trials(earlier), key=lambda trial: trial.values[0])[:3]
    assert [trial.params for trial in trials(study)] == [trial.params for trial in best]


def test_a_study_keeps_its_number_of_objectives(database: Database) -> None:
    open_study(database, settings=settings(pruner="none"))
    with pytest.raises(SpaceChangedError, match=r"study 'study' has one objective, not two \(search\.also_minimize\)"):
        open_study(database, settings=two())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": "halving"}, r"search\.pruner: 'halving' judges by one objective"),
        ({"sampler": "cmaes"}, r"search\.sampler: cmaes knows one objective only"),
    ],
    ids=["pruner", "sampler"],
)
def test_what_knows_one_objective_only_is_refused(database: Database, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_study(database, settings=two(**changes))
