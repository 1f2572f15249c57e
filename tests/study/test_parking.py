"""Parking and promotion, with the smallest policy that needs both."""

from __future__ import annotations

from collections.abc import Sequence, Set

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as State

from automl.space.entries import PRUNERS, Pruner
from automl.space.options import Options
from automl.space.spec import SearchSettings
from automl.storage.base import AttemptState
from automl.storage.sql import Database
from automl.study.parking import ParkingPruner
from automl.study.study import Study
from automl.trial import Action, Decision, TrialState
from tests.study.driving import Loop, open_study, settings, trials


class BestFirst(ParkingPruner):
    """Parks every trial at its second evaluation; once `wave` trials have got there, promotes the best parked one."""

    def __init__(self, step: int, wave: int) -> None:
        self._step = step
        self._wave = wave

    def horizon(self, step: int) -> int:
        return 80

    def decide(self, trial: FrozenTrial) -> Decision:
        is_rung = trial.last_step == self._step
        return Decision(trial=trial.number, action=Action.PARK if is_rung else Action.CONTINUE, reason="at the rung")

    def promote(
        self, trials: Sequence[FrozenTrial], parked: Set[int], *, direction: StudyDirection, may_start: bool
    ) -> int | None:
        values = {trial.number: trial.intermediate_values.get(self._step) for trial in trials}
        arrived = [number for number, value in values.items() if value is not None]
        best = min(arrived, key=lambda number: values[number] or 0.0, default=None)
        return best if len(arrived) >= self._wave and best in parked else None


@pytest.fixture
def best_first() -> object:
    """Registers the policy as a user's own would be."""

    def build(search: SearchSettings, options: object) -> BestFirst:
        return BestFirst(2 * search.evaluate_every, wave=4)

    PRUNERS["best-first"] = Pruner(options=Options, build=build)
    yield
    del PRUNERS["best-first"]


@pytest.fixture
def study(database: Database, best_first: object) -> Study:
    return open_study(database, settings=SEARCH)


SEARCH = settings(trials=4, pruner="best-first")


def parked_study(study: Study) -> Loop:
    loop = Loop(study, slots=2)
    while len(loop.ended(Action.PARK)) < 4:
        loop.fill()
        loop.report()
        loop.decide()
    return loop


def test_a_parked_trial_stays_running_in_optuna_and_frees_its_worker(database: Database, study: Study) -> None:
    parked_study(study)
    assert not study.live
    assert study.counts()[TrialState.RUNNING] == 4
    assert {trial.state for trial in trials(study)} == {State.RUNNING}
    assert {attempt.state for attempt in database.store("study").attempts()} == {AttemptState.PARKED}
    assert not study.finished


def test_the_promoted_trial_continues_and_the_others_end_pruned(database: Database, study: Study) -> None:
    loop = parked_study(study)
    best = min(trials(study), key=lambda trial: trial.intermediate_values[20]).number
    loop.run()
    states = {trial.number: trial.state for trial in trials(study)}
    assert states == {number: State.COMPLETE if number == best else State.PRUNED for number in range(4)}
    assert [attempt.number for attempt in database.store("study").attempts(best)] == [1, 2]
    assert {trial.user_attrs["stop_reason"] for trial in trials(study) if trial.number != best} == {"pruned"}


def test_parked_trials_count_towards_the_budget(study: Study) -> None:
    parked_study(study)
    promoted = study.next(worker=0)
    assert promoted is not None
    assert promoted.attempt == 2
    assert study.next(worker=0) is None
    assert len(trials(study)) == 4


def test_another_driver_finds_the_parked_trials_parked(database: Database, study: Study) -> None:
    loop = parked_study(study)
    again = open_study(database, settings=SEARCH, run=2)
    best = min(trials(again), key=lambda trial: trial.intermediate_values[20]).number
    spec = again.next(worker=0)
    assert spec is not None
    assert (spec.number, spec.attempt) == (best, 2)
    assert again.next(worker=0) is None
    again.interrupt("stopped")
    Loop(again, slots=2, done=loop.done).run()
    assert again.counts()[TrialState.COMPLETE] == 1


def test_killed_between_report_and_park_the_trial_is_parked_by_the_next_driver(
    database: Database, study: Study
) -> None:
    loop = Loop(study, slots=2)
    loop.fill()
    loop.report()
    loop.decide()
    loop.report()
    again = open_study(database, settings=SEARCH, run=2)
    assert not again.live
    spec = again.next(worker=0)
    assert spec is not None
    assert spec.number == 2, "the two at the rung are parked, so a new one starts"


def test_with_another_pruner_parked_trials_are_continued(database: Database, study: Study) -> None:
    parked_study(study)
    again = open_study(database, settings=settings(trials=4, pruner="none"), run=2)
    assert [spec.number for spec in (again.next(worker=0) for _ in range(4)) if spec] == [0, 1, 2, 3]
