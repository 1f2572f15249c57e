"""Constraints that a trial's last measurement decides: who is ruled out, what samplers learn, what a crash leaves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from optuna.trial import TrialState as State

from automl.space.constraints import parse_constraint
from automl.storage.invariants import check
from automl.storage.sql import Database
from automl.storage.trials import list_trials
from automl.trial import Measurement, TrialSpec
from tests.study.driving import SPACE, Loop, measured, open_study, settings, trials

BOUND = replace(SPACE, measured=(parse_constraint("forgetting <= 0.01 * rank"),))


@dataclass
class Forgetful(Loop):
    """Trials forget what is laid down by their number; nothing is known of the others."""

    forgets: dict[int, float] = field(default_factory=dict)

    def measure(self, spec: TrialSpec, step: int) -> Measurement:
        adapter = f"adapters/{spec.number}" if step == spec.steps else None
        known = step == spec.steps and spec.number in self.forgets
        told = {"forgetting": self.forgets[spec.number], "kept": 2.0} if known else {}
        return measured(spec, step, self.curve(spec, step), adapter, **told)


def bound(database: Database, **changes: Any) -> Any:
    few = settings(**{"trials": 4, "pruner": "none", "keep": 4, **changes.pop("search", {})})
    return open_study(database, **{"space": BOUND, "settings": few, **changes})


def test_a_trial_that_forgot_too_much_is_infeasible_and_never_the_best(database: Database) -> None:
    retired: list[int] = []
    study = bound(database, retire=retired.append)
    # Rank 2 at least: the first may forget that much, the second, the best by its loss, may not.
    Forgetful(study, lambda spec, step: 1.0 - spec.number / 10, forgets={0: 0.02, 1: -0.5, 2: 0.0, 3: 9.0}).run()
    found = trials(study)
    assert [trial.state for trial in found] == [State.COMPLETE, State.COMPLETE, State.COMPLETE, State.PRUNED]
    assert [trial.user_attrs["stop_reason"] for trial in found] == ["finished"] * 3 + ["infeasible"]
    assert [trial.user_attrs["forgetting"] for trial in found] == [0.02, -0.5, 0.0, 9.0]
    assert found[3].constraints == {"measured": pytest.approx(9.0 - 0.01 * found[3].params["rank"])}
    best = study.best()
    assert best is not None
    assert best.number == 2
    assert retired == [3], "its adapter is of no use"
    assert [each.trial for each in database.store("study").artifacts()] == [0, 1, 2]
    assert [row.forgetting for row in list_trials(database, "study")] == [0.02, -0.5, 0.0, 9.0]
    broken = check(database, "study", finished=True, max_trials=4)
    assert {violation.id for violation in broken} <= {"I15"}, "the adapters themselves were never written"


def test_what_could_not_be_measured_satisfies_nothing(database: Database) -> None:
    study = bound(database)
    Forgetful(study, forgets={1: 0.0}).run()
    assert [trial.state is State.COMPLETE for trial in trials(study)] == [False, True, False, False]
    assert trials(study)[0].constraints == {"measured": 1.0}


def test_pruned_trials_are_asked_nothing(database: Database) -> None:
    study = bound(database, search={"pruner": "peer", "trials": 12})
    Forgetful(study, forgets=dict.fromkeys(range(12), 0.0), slots=4).run()
    pruned = [trial for trial in trials(study) if trial.user_attrs["stop_reason"] == "pruned"]
    assert pruned
    assert all(not trial.constraints and "forgetting" not in trial.user_attrs for trial in pruned)


def test_without_a_second_objective_a_trial_cannot_be_on_the_front(database: Database) -> None:
    study = bound(database, space=SPACE, search={"also_minimize": "forgetting", "sampler": "tpe", "trials": 14})
    Forgetful(study, forgets={number: number / 10 for number in range(14) if number != 3}).run()
    states = [trial.state for trial in trials(study)]
    assert [number for number, state in enumerate(states) if state is not State.COMPLETE] == [3]
    assert all(trial.values[1] == trial.number / 10 for trial in trials(study) if trial.state is State.COMPLETE)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_samplers_go_on_where_everything_is_infeasible(database: Database, sampler: str) -> None:
    options = {"n_startup_trials": 3} if sampler in ("tpe", "gp") else {}
    study = bound(database, search={"sampler": sampler, "sampler_options": options, "trials": 6})
    Forgetful(study, forgets=dict.fromkeys(range(6), 5.0)).run()
    assert study.best() is None
    assert {trial.state for trial in trials(study)} == {State.PRUNED}


def test_a_driver_that_dies_before_it_decides_leaves_the_decision_to_the_next(database: Database) -> None:
    loop = Forgetful(bound(database), forgets={0: 7.0})
    while not loop.study.latest or loop.study.latest[0].step < 80:
        loop.fill()
        loop.report()
        loop.decide() if loop.done[0] < 80 else None
    assert trials(loop.study)[0].state is State.RUNNING, "measured, stored, and not decided"
    retired: list[int] = []
    after = bound(database, run=2, retire=retired.append)
    first = trials(after)[0]
    assert (first.state, first.user_attrs["stop_reason"]) == (State.PRUNED, "infeasible")
    assert set(retired) == {0}


def test_a_driver_that_dies_within_the_end_leaves_an_end_to_repeat(database: Database) -> None:
    loop = Forgetful(bound(database), forgets={0: 7.0})
    loop.fill()
    while loop.done[0] < 80:
        loop.report()
        loop.decide() if loop.done[0] < 80 else None
    storage = loop.study.optuna._storage
    storage.set_trial_user_attr(trials(loop.study)[0]._trial_id, "stop_reason", "infeasible")
    after = bound(database, run=2)
    first = trials(after)[0]
    assert first.state is State.PRUNED
    assert first.constraints["measured"] > 6.0
