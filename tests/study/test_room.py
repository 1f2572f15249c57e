"""What is known not to fit into memory is never started, and a study learns from what did not fit after all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState as State

from automl.lora import Hyperparameters
from automl.space.spec import CategoricalParameter, SearchSpace
from automl.storage.sql import Database
from automl.study.constrained import ConstrainedSampler
from automl.study.room import MEMORY, Room
from automl.study.study import Study
from automl.trial import StopReason, TrialFailure, TrialState
from tests.study.driving import SPACE, Loop, open_study, settings, trials

LISTED = SearchSpace(parameters=(CategoricalParameter(name="rank", choices=(2, 4, 8, 16, 32)),))


def needed(hyper: Hyperparameters) -> int:
    """One GB for each rank."""
    return hyper.rank * 10**9


def study_with(database: Database, available: int, **changes: Any) -> Study:
    """A study as a driver opens it: what it learnt in earlier runs is asked of the database."""
    store = database.store("study")
    known = store.last_event(MEMORY) or {}
    room = Room(
        needed,
        available * 10**9,
        factor=float(known.get("factor", 1.0)),
        remember=lambda detail: store.add_event(MEMORY, detail),
    )
    return open_study(database, room=room, **changes)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "qmc", "grid"])
def test_what_does_not_fit_is_not_proposed(database: Database, sampler: str) -> None:
    space = LISTED if sampler == "grid" else SPACE
    study = study_with(database, 9, space=space, settings=settings(sampler=sampler, trials=4))
    Loop(study).run()
    assert all(trial.params["rank"] <= 9 for trial in trials(study))
    assert {trial.state for trial in trials(study)} <= {State.COMPLETE, State.PRUNED}


def test_what_is_enqueued_and_does_not_fit_is_refused_with_both_numbers_and_costs_no_trial(database: Database) -> None:
    space = replace(SPACE, enqueue=({"rank": 32, "learning_rate": 1e-3, "target": "qv"},))
    study = study_with(database, 9, space=space, settings=settings(trials=2))
    Loop(study).run()
    refused, *others = trials(study)
    assert (refused.state, refused.user_attrs["stop_reason"]) == (State.FAIL, "infeasible")
    assert refused.user_attrs["error"] == (
        "needs 32.0 GB of memory even alone and one row at a time, and 9.0 GB are there"
    )
    assert not refused.intermediate_values
    assert len(others) == 2
    assert study.counts()[TrialState.COMPLETE] + study.counts()[TrialState.PRUNED] == 2


def test_what_was_refused_is_tried_when_the_study_goes_on_with_more_memory(database: Database) -> None:
    wanted = {"rank": 32, "learning_rate": 1e-3, "target": "qv"}
    space = replace(SPACE, enqueue=(wanted,), constraints=())

    def begun(memory: int, run: int) -> list[str | None]:
        study = study_with(database, memory, space=space, settings=settings(trials=1 + run), run=run)
        Loop(study).run()
        given = [trial for trial in trials(study) if trial.system_attrs.get("fixed_params") == wanted]
        return [trial.user_attrs.get("stop_reason") for trial in given]

    assert begun(9, 1) == ["infeasible"]
    assert begun(9, 2) == ["infeasible"]
    refused, tried = begun(40, 3)
    assert (refused, tried != "infeasible") == ("infeasible", True)
    assert len(begun(40, 4)) == 2


def run_out(study: Study, rank: int) -> None:
    """The next trial of this rank runs out of memory; those before it are stopped otherwise."""
    while (spec := study.next(worker=0)) is not None:
        is_it = spec.hyper.rank == rank
        reason = StopReason.OOM if is_it else StopReason.DIVERGED
        study.fail(TrialFailure(trial=spec.number, step=0, reason=reason, message="one row at a time"))
        if is_it:
            return
    raise AssertionError(f"no trial of rank {rank}")


def test_a_trial_that_did_not_fit_corrects_the_plan_for_later_ones_and_for_later_runs(database: Database) -> None:
    study = study_with(database, 40, space=LISTED, settings=settings(sampler="grid", trials=20))
    run_out(study, 16)
    asked = {trial.params["rank"] for trial in trials(study)}
    detail = database.store("study").last_event(MEMORY)
    assert detail is not None
    assert detail["factor"] == pytest.approx(40 / 16)
    Loop(study).run()
    seen = [trial.params["rank"] for trial in trials(study)]
    assert sorted(seen) == sorted({2, 4, 8, 16} | asked)  # 32 would need even more: it is tried no more, and 8 is

    again = study_with(database, 40, space=LISTED, settings=settings(sampler="grid", trials=20), run=2)
    assert again.finished
    wider = study_with(database, 85, space=LISTED, settings=settings(sampler="grid", trials=20), run=3)
    assert wider.finished == (32 in asked)  # a larger device has room for 32 x 2.5


def test_memory_that_others_took_is_not_put_down_to_the_plan(database: Database) -> None:
    study = study_with(database, 40, space=LISTED, settings=settings(sampler="grid", trials=20))
    run_out(study, 4)
    assert database.store("study").last_event(MEMORY) is None


def test_a_queued_trial_that_is_known_not_to_fit_by_now_is_ended(database: Database) -> None:
    space = replace(SPACE, enqueue=({"rank": 16, "learning_rate": 1e-3, "target": "qv"},))
    study = study_with(database, 40, space=space)
    assert study.next(worker=0) is not None
    study.interrupt("stopped")
    database.store("study").add_event(MEMORY, {"factor": 3.0})
    again = study_with(database, 40, space=space, run=2)
    assert again.next(worker=0) is not None
    assert set(again.live) == {1}
    assert "(3.00 times the plan, as trials here have shown)" in trials(again)[0].user_attrs["error"]


def test_a_trial_that_was_trained_goes_on_whatever_was_learnt_of_memory_since(database: Database) -> None:
    enqueue = tuple({"rank": 16, "learning_rate": 1e-3 * number, "target": "qv"} for number in (1, 2, 3))
    search = settings(trials=3, pruner="halving", pruner_options={"first_rung": 1})
    study = study_with(database, 40, space=replace(SPACE, enqueue=enqueue), settings=search)
    loop = Loop(study)
    while study.parked < 2:
        loop.fill()
        loop.report()
        loop.decide()
    run_out(study, 16)
    assert database.store("study").last_event(MEMORY) is not None
    loop.run()
    trained = [trial.user_attrs["stop_reason"] for trial in trials(study) if trial.intermediate_values]
    assert "infeasible" not in trained
    assert "finished" in trained


def test_without_a_shortage_the_sampler_is_optunas_own(database: Database) -> None:
    assert not isinstance(open_study(database).optuna.sampler, ConstrainedSampler)
