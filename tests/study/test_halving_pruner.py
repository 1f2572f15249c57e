"""Parking at rungs and promotion, stated on curves written down by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from automl.errors import ConfigError
from automl.space.entries import PRUNERS
from automl.space.spec import SearchSettings
from automl.storage.sql import Database
from automl.study.curves import rungs
from automl.study.halving import HalvingPruner
from automl.study.pruning import make_pruner
from automl.trial import Action, TrialSpec
from automl.trial import TrialState as State
from tests.study.driving import Loop, bowl, open_study, settings, trials


def policy(**options: float) -> HalvingPruner:
    return HalvingPruner(evaluate_every=10, steps=80, **options)  # type: ignore[arg-type]


def running(number: int, curve: Mapping[int, float]) -> FrozenTrial:
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(curve))
    trial.number = number
    return trial


def promoted(pruner: HalvingPruner, *curves: Mapping[int, float], live: int = 0, may_start: bool = True) -> int | None:
    """All but the last `live` trials are parked."""
    study = [running(number, curve) for number, curve in enumerate(curves)]
    parked = set(range(len(curves) - live))
    return pruner.promote(study, parked, direction=StudyDirection.MINIMIZE, may_start=may_start)


CROWD = ({20: 1.0}, {20: 1.0}, {20: 1.0}, {20: 0.5})


def test_rungs_double_up_to_the_last_step() -> None:
    assert rungs(10, 80, 2) == (20, 40, 80)
    assert rungs(10, 120, 2) == (20, 40, 80, 120)
    assert rungs(10, 20, 2) == (20,)
    assert rungs(10, 10, 2) == (10,)


@pytest.mark.parametrize(("step", "action"), [(10, Action.CONTINUE), (20, Action.PARK), (30, Action.CONTINUE)])
def test_trials_are_parked_at_rungs(step: int, action: Action) -> None:
    assert policy().decide(running(0, {step: 1.0})).action is action


def test_half_of_all_steps_goes_to_new_trials() -> None:
    # 4 trials at 20 steps are 80 of 80 steps: something may be promoted. Once one has gone on to 80 and another to 40,
    # new trials have had 80 of 160 steps, and the next place belongs to one of them.
    assert promoted(policy(), *CROWD) == 3
    went_on = ({20: 1.0}, {20: 1.0}, {20: 0.9, 40: 0.8}, {20: 0.5, 40: 0.5, 80: 0.4})
    assert promoted(policy(), *went_on) is None


def test_steps_a_running_trial_is_committed_to_count_at_once() -> None:
    new = ({20: 0.2}, {20: 1.0}, {20: 1.0})
    assert promoted(policy(explore=0.6), *new) == 0
    assert promoted(policy(explore=0.6), *new, {20: 1.0, 40: 1.0, 50: 1.0}, live=1) is None


def test_nobody_is_promoted_who_does_not_stand_out() -> None:
    crowd = ({20: 1.0}, {20: 0.995}, {20: 1.0})
    assert promoted(policy(), *crowd) is None
    assert promoted(policy(guard=0.001), *crowd) == 1


def test_at_the_end_the_best_go_on_whether_they_stand_out_or_not() -> None:
    crowd = ({20: 1.0}, {20: 0.995}, {20: 1.0})
    assert promoted(policy(), *crowd, may_start=False) == 1


def test_at_the_end_the_finalists_go_on_at_each_rung() -> None:
    # Two of four have passed the first rung: more than the best third, but fewer than three finalists.
    field = ({20: 1.0}, {20: 1.1}, {20: 0.2, 40: 0.2, 80: 0.2}, {20: 0.3, 40: 0.3, 80: 0.3})
    assert promoted(policy(), *field, may_start=False) == 0
    assert promoted(policy(finalists=1), *field, may_start=False) is None


def test_at_the_end_nearly_half_of_a_rung_goes_on() -> None:
    # Three of seven: the third has a place at the end, and none as long as new trials may start.
    field = ({20: 0.1, 40: 0.1, 80: 0.1}, {20: 0.2, 40: 0.2, 80: 0.2}, {20: 0.3}, *({20: 1.0} for _ in range(4)))
    assert promoted(policy(finalists=1, explore=0.1), *field, may_start=False) == 2
    assert promoted(policy(finalists=1, explore=0.1, reduction_factor=4.0), *field) is None


def test_at_the_end_the_score_expects_all_of_the_last_gain_again() -> None:
    # 0.5 after 0.6 scores 0.45, and 0.4 at the end; 0.55 after 0.75 scores 0.45, and 0.35.
    field = ({10: 0.6, 20: 0.5}, {10: 0.75, 20: 0.55})
    assert promoted(policy(finalists=1, explore=0.1), *field, may_start=False) == 1
    assert promoted(policy(finalists=1, explore=0.1), *field) == 0


def test_only_the_best_third_of_a_rung_may_go_on() -> None:
    rung = ({20: 0.1, 40: 0.1, 80: 0.1}, {20: 0.2}, {20: 1.0}, {20: 1.0}, {20: 1.0})
    assert promoted(policy(explore=0.2, reduction_factor=5), *rung) is None
    assert promoted(policy(explore=0.2, reduction_factor=4), *rung) == 1


def test_the_score_expects_half_of_the_last_gain_again() -> None:
    # 0.5 after 0.5 scores 0.5; 0.6 after 1.0 scores 0.4.
    field = ({10: 0.5, 20: 0.5}, {10: 1.0, 20: 0.6}, {20: 1.0}, {20: 1.0}, {20: 1.0})
    assert promoted(policy(reduction_factor=5), *field) == 1
    assert promoted(policy(reduction_factor=5, expected_gain=0.0), *field) == 0


def test_a_metric_to_maximise_is_ranked_from_above() -> None:
    study = [running(number, {20: value}) for number, value in enumerate((0.5, 0.5, 0.9))]
    assert policy().promote(study, {0, 1, 2}, direction=StudyDirection.MAXIMIZE, may_start=True) == 2


@pytest.mark.parametrize(
    "options", [{"first_rung": 0}, {"reduction_factor": 1}, {"explore": 0}, {"guard": -1}, {"finalists": 0}]
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="halving needs first_rung >= 1"):
        make_pruner(settings(pruner="halving", pruner_options=options))


HALVING = settings(trials=12, pruner="halving", sampler="tpe")


@pytest.mark.parametrize("slots", [1, 4])
def test_a_search_ends_with_finalists_at_the_last_step(database: Database, slots: int) -> None:
    study = open_study(database, settings=HALVING)
    Loop(study, slots=slots).run()
    counts = study.counts()
    assert counts[State.COMPLETE] >= 3
    assert counts[State.COMPLETE] + counts[State.PRUNED] == 12
    assert counts[State.RUNNING] == 0
    best = min(trials(study), key=lambda trial: trial.value or 9.0)
    assert best.state is TrialState.COMPLETE


def test_a_killed_search_decides_as_one_that_was_not(database: Database) -> None:
    study = open_study(database, settings=HALVING)
    loop = Loop(study, slots=1)
    for _ in range(20):
        loop.fill()
        loop.report()
        loop.decide()
    again = open_study(database, settings=HALVING, run=2)
    parked = set(again._open.parked)
    assert parked == set(study._open.parked), "parked trials are read from SQL"
    ours, theirs = (each._judge.promotable(parked, may_start=False) for each in (again, study))
    assert ours == theirs
    Loop(again, slots=1, done=loop.done).run()
    assert again.counts()[State.COMPLETE] >= 3


def test_a_step_budget_leaves_enough_to_finish_one_trial(database: Database) -> None:
    study = open_study(database, settings=settings(trials=100, pruner="halving", max_steps=200))
    Loop(study).run()
    assert study.spent_steps <= 200
    assert study.counts()[State.COMPLETE] >= 1


class KeepsAll(HalvingPruner):
    """The policy without giving up."""

    def hopeless(self, *arguments: Any, **named: Any) -> list[int]:
        return []


@pytest.fixture
def keeps_all() -> Iterator[str]:
    def build(search: SearchSettings, options: Mapping[str, Any]) -> KeepsAll:
        return KeepsAll(evaluate_every=search.evaluate_every, steps=search.steps, **options)

    PRUNERS["keeps-all"] = replace(PRUNERS["halving"], build=build)
    yield "keeps-all"
    del PRUNERS["keeps-all"]


@pytest.mark.parametrize(
    ("slots", "changes"),
    [
        (1, {"sampler": "tpe"}),
        (4, {"sampler": "tpe"}),
        (3, {"trials": 500, "max_steps": 900}),
        (2, {"trials": 60, "patience": 6}),
        (2, {"pruner_options": {"finalists": 1, "reduction_factor": 2}}),
    ],
    ids=["one-at-once", "four-at-once", "step-budget", "patience", "other-options"],
)
def test_giving_up_changes_no_promotion(
    database: Database, keeps_all: str, slots: int, changes: Mapping[str, Any]
) -> None:
    outcome = []
    for pruner in ("halving", keeps_all):
        search = settings(**{"trials": 16, "pruner": pruner, **changes})
        discarded: list[int] = []
        study = open_study(
            database, name=pruner, store=database.store(pruner), settings=search, discard=discarded.append
        )
        loop = Loop(study, noisy, slots=slots)
        loop.run()
        given_up = loop.ended(Action.PRUNE)
        assert discarded == given_up
        assert bool(given_up) == (pruner == "halving"), "the case must give up something to show anything"
        decided = [(each.trial, each.action) for each in loop.decisions if each.action is not Action.PRUNE]
        ends = [(trial.params, trial.intermediate_values, trial.state, trial.values) for trial in trials(study)]
        outcome.append((decided, ends, study.spent_steps))
    assert outcome[0] == outcome[1]


def noisy(spec: TrialSpec, step: int) -> float:
    return bowl(spec, step) + random.Random(1000 * spec.number + step).gauss(0, 0.1)


def test_what_was_given_up_is_pruned_and_another_driver_goes_on(database: Database) -> None:
    search = settings(trials=12, pruner="halving")
    study = open_study(database, settings=search)
    loop = Loop(study, noisy, slots=2)
    while not loop.ended(Action.PRUNE):
        loop.fill()
        loop.report()
        loop.decide()
    (number, *_) = loop.ended(Action.PRUNE)
    assert trials(study)[number].state is TrialState.PRUNED
    assert trials(study)[number].user_attrs["stop_reason"] == "pruned"
    assert study.counts()[State.PRUNED] == len(loop.ended(Action.PRUNE))
    again = Loop(open_study(database, settings=search, run=2), noisy, slots=2, done=loop.done)
    again.run()
    counts = again.study.counts()
    assert (counts[State.COMPLETE] + counts[State.PRUNED], counts[State.RUNNING]) == (12, 0)
    assert counts[State.COMPLETE] >= 3
