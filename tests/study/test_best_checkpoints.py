"""Trials that are worth their best checkpoint, to the decider: values, ends, budgets, and a crash anywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState as State

from automl.storage.base import AttemptState
from automl.storage.invariants import check
from automl.storage.lease import StudyLease
from automl.storage.sql import Database
from automl.storage.trials import list_trials, with_metrics
from automl.study.outcome import StudyEvent
from automl.trial import BestCheckpoint, Measurement, TrialSpec
from tests.study.driving import Loop, measured, numbers, open_study, settings, trials
from tests.study.test_crash import Guard, Killed

TURNS_AT = 30


def hook(spec: TrialSpec, step: int) -> float:
    """A loss that falls up to step 30 and then rises; lower for later trials."""
    return 2.0 - spec.number / 10 + abs(step - TURNS_AT) / 100


class Ending(Loop):
    """Even trials end themselves at step 50, the others go on; all are worth step 30, as their workers say."""

    def train(self, spec: TrialSpec) -> Measurement:
        measurement = super().train(spec)
        if measurement.best is not None:
            self.done[spec.number] = spec.steps  # a host trains it no further
        return measurement

    def measure(self, spec: TrialSpec, step: int) -> Measurement:
        ends_itself = spec.early_stopping and spec.number % 2 == 0 and step >= 50
        at = 50 if ends_itself else step
        found = measured(spec, at, self.curve(spec, at))
        if not (spec.best_by and (ends_itself or step == spec.steps)):
            return found
        reason = f"overfits since step {TURNS_AT}" if ends_itself else ""
        value = self.curve(spec, TURNS_AT)
        best = BestCheckpoint(step=TURNS_AT, metrics={"loss": value, "accuracy": 1 - value / 3}, reason=reason)
        return replace(found, adapter=f"adapters/{spec.number}", best=best)


def opened(database: Database, **changes: Any) -> Any:
    search = {"trials": 4, "pruner": "none", "checkpoint": "best", "early_stopping": True, **changes.pop("search", {})}
    return open_study(database, settings=settings(**search), **changes)


def test_a_trial_is_worth_its_best_evaluation_and_its_curve_goes_on(database: Database) -> None:
    said: list[StudyEvent] = []
    study = opened(database, on_event=said.append)
    Ending(study, hook).run()
    found = trials(study)
    assert [trial.state for trial in found] == [State.COMPLETE] * 4
    assert [trial.value for trial in found] == pytest.approx([2.0, 1.9, 1.8, 1.7])
    assert [trial.last_step for trial in found] == [50, 80, 50, 80]
    assert found[1].intermediate_values[80] == pytest.approx(2.4)
    assert study.best().number == 3
    assert study.spent_steps == 2 * 50 + 2 * 80
    ends = [event.text for event in said if event.kind == "finished"]
    assert "overfits since step 30, best at step 30, loss 2" in ends[0]
    assert "best at step 30, loss 1.9" in ends[1]
    assert [each.metric for each in database.store("study").artifacts()] == pytest.approx([1.9, 1.8, 1.7])


def test_whoever_reads_the_study_is_told(database: Database) -> None:
    Ending(opened(database), hook).run()
    rows = with_metrics(database, "study", list_trials(database, "study"), ["accuracy"])
    assert [row.value for row in rows] == pytest.approx([2.0, 1.9, 1.8, 1.7])
    assert [row.steps for row in rows] == [50, 80, 50, 80]
    assert rows[0].shown_reason == "finished: overfits since step 30, best at step 30"
    assert rows[1].shown_reason == "finished: best at step 30"
    assert rows[0].metrics == {"accuracy": pytest.approx(1 / 3)}
    assert rows[0].as_dict()["checkpoint"]["step"] == TURNS_AT


def test_the_last_checkpoint_counts_where_it_is_to(database: Database) -> None:
    study = opened(database, search={"checkpoint": "last", "early_stopping": False})
    Ending(study, hook).run()
    assert [trial.value for trial in trials(study)] == pytest.approx([2.5, 2.4, 2.3, 2.2])
    assert [row.shown_reason for row in list_trials(database, "study")] == ["finished"] * 4


def test_a_method_that_takes_ranks_away_is_worth_its_last_checkpoint(database: Database) -> None:
    study = opened(database)
    space = replace(study._space, fixed={"method": "adalora"})
    spec = opened(database, space=space, run=2).next(worker=0)
    assert spec is not None
    assert (spec.best_by, spec.early_stopping) == ("", False)


def test_steps_that_an_ended_trial_leaves_are_spent_on_others(database: Database) -> None:
    study = opened(database, search={"trials": 50, "max_steps": 400})
    Ending(study, hook).run()
    assert len(numbers(study, State.COMPLETE)) == 6  # 50, 80, 50, 80, 50 and 80 steps; five full ones otherwise


def test_patience_compares_what_trials_are_worth(database: Database) -> None:
    def worse_at_the_end(spec: TrialSpec, step: int) -> float:
        return hook(spec, step) + (spec.number if step > TURNS_AT else 0)

    study = opened(database, search={"trials": 9, "patience": 2})
    Ending(study, worse_at_the_end).run()
    assert len(trials(study)) == 9  # each has a better checkpoint than the one before, and a worse last value


@pytest.mark.parametrize("last_write", range(3, 60, 13))
def test_killed_before_a_write_it_comes_to_the_same(database: Database, last_write: int) -> None:
    done: dict[int, int] = {}
    with StudyLease(database, "study") as lease:
        lease.take("text", "0" * 64, {})
        for run, write in ((1, last_write), (2, None)):
            guard = Guard(write)
            storage = database.optuna_storage(guard)
            try:
                study = opened(database, storage=storage, store=database.store("study", guard), run=run)
                Ending(study, hook, slots=2, done=done).run()
                break
            except Killed:
                continue
            finally:
                storage.remove_session()
                storage.engine.dispose()
        rows = [row for row in list_trials(database, "study") if row.state == "COMPLETE"]
        assert len(rows) == 4
        for row in rows:
            assert row.value == pytest.approx(2.0 - row.number / 10)
            assert row.steps == (80 if row.number % 2 else 50)
        states = {attempt.state for attempt in database.store("study").attempts()}
        assert AttemptState.SUCCEEDED in states
        broken = check(database, "study", finished=True, max_trials=4, files=False)
        assert [violation.id for violation in broken] == []
