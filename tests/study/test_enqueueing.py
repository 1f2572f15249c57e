"""Configurations a study is given: known by content, whatever was edited and whenever the driver was killed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState as State

from automl.storage.sql import Database
from automl.study.enqueueing import WARM_START
from automl.study.study import Study
from automl.trial import StopReason, TrialFailure
from tests.study.driving import SPACE, Loop, open_study, settings, trials

PLAIN = settings(trials=8, steps=10, pruner="none")
A, B, C = ({"rank": rank, "learning_rate": 1e-3, "target": "qv"} for rank in (4, 8, 16))


def studied(database: Database, enqueue: list[dict[str, Any]], run: int, **changes: Any) -> Study:
    return open_study(database, space=replace(SPACE, enqueue=tuple(enqueue)), run=run, **{"settings": PLAIN, **changes})


def enqueued(study: Study) -> list[dict[str, Any]]:
    return [trial.system_attrs["fixed_params"] for trial in trials(study) if "fixed_params" in trial.system_attrs]


class Killed(Exception):
    """Ends the driver in the middle of what it was doing."""


def earlier_study(database: Database, name: str = "earlier") -> Study:
    earlier = open_study(database, name=name, store=database.store(name), settings=settings(pruner="none"))
    Loop(earlier).run()
    return earlier


def killed_after(study_of: Any, writes: int) -> None:
    """Open a study and die at the `writes`-th trial that is enqueued."""
    from optuna import Study as OptunaStudy

    count = Counter[str]()
    real = OptunaStudy.enqueue_trial

    def enqueue(self: Any, *arguments: Any, **named: Any) -> None:
        count["calls"] += 1
        if count["calls"] > writes:
            raise Killed
        real(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:  # Optuna's, not ours: the place where a kill hits
        patch.setattr(OptunaStudy, "enqueue_trial", enqueue)
        with pytest.raises(Killed):
            study_of()


@pytest.mark.parametrize(
    ("then", "added"),
    [([C, A, B], [C]), ([B, A], []), ([B], []), ([A, C], [C]), ([A, A, B], [A]), ([{**A, "rank": 4.0}, B, C], [C])],
    ids=["put-first", "reordered", "one-removed", "one-replaced", "listed-twice", "written-otherwise"],
)
@pytest.mark.parametrize("trained", [0, 2])
def test_an_edited_list_trains_nothing_twice_and_skips_nothing(
    database: Database, then: list[dict[str, Any]], added: list[dict[str, Any]], trained: int
) -> None:
    first = studied(database, [A, B], run=1)
    loop = Loop(first)
    for _ in range(trained):
        loop.fill()
        loop.report()
        loop.decide()
    assert enqueued(studied(database, then, run=2)) == [A, B, *added]


def test_a_partial_configuration_is_another_one() -> None:
    assert missing_of([{"rank": 4}, A], [A]) == [{"rank": 4}]
    assert missing_of([{"flag": True}], [{"flag": 1}]) == [{"flag": True}]


def missing_of(wanted: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[Any]:
    from optuna.trial import create_trial

    from automl.study.enqueueing import missing

    return missing(wanted, [create_trial(state=State.WAITING, system_attrs={"fixed_params": each}) for each in given])


def test_what_the_budget_cut_off_is_trained_once_there_is_more(database: Database) -> None:
    small = settings(trials=2, steps=10, pruner="none", max_steps=10)
    study = studied(database, [A, B], run=1, settings=small)
    Loop(study).run()
    assert [trial.state for trial in trials(study)] == [State.COMPLETE, State.FAIL], "no steps were left for the second"
    again = studied(database, [A, B], run=2)
    assert enqueued(again) == [A, B, B]
    assert enqueued(studied(database, [A, B], run=3)) == [A, B, B]


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_killed_while_enqueueing_the_rest_is_enqueued_by_the_next_driver(database: Database, writes: int) -> None:
    best = sorted(trials(earlier_study(database)), key=lambda trial: trial.value or 9.0)[:3]
    warm = replace(PLAIN, warm_start="earlier")
    killed_after(lambda: studied(database, [A, B], run=1, settings=warm), writes)
    again = studied(database, [A, B], run=2, settings=warm)
    assert enqueued(again) == [A, B, *(trial.params for trial in best)]
    assert len(enqueued(studied(database, [A, B], run=3, settings=warm))) == 5


def test_a_warm_start_does_not_follow_the_other_study(database: Database) -> None:
    """What was lent is recorded: the other study may go on, or be removed, before this one is continued."""
    earlier_study(database)
    warm = replace(PLAIN, warm_start="earlier")
    killed_after(lambda: studied(database, [], run=1, settings=warm), 1)
    lent = next(detail for _, kind, detail in database.store("study").events() if kind == WARM_START)
    from optuna import delete_study

    delete_study(study_name="earlier", storage=database.optuna_storage())
    assert enqueued(studied(database, [], run=2, settings=warm)) == lent["configurations"]


def test_a_study_that_began_without_a_record_is_not_started_again(database: Database) -> None:
    """As an older version left it: three borrowed trials, one sampled, and no event."""
    earlier = earlier_study(database)
    study = open_study(database, settings=PLAIN)
    for trial in trials(earlier)[:3]:
        study.optuna.enqueue_trial(dict(trial.params), user_attrs={WARM_START: "earlier"})
    loop = Loop(open_study(database, settings=PLAIN, run=2), slots=4)
    loop.fill()
    assert len(trials(loop.study)) == 4
    loop.study.interrupt("stopped")
    open_study(database, settings=replace(PLAIN, warm_start="earlier"), run=3)
    assert len(trials(loop.study)) == 4


def test_failures_of_an_earlier_run_do_not_stop_this_one(database: Database) -> None:
    search = settings(max_failed_trials=2, pruner="halving")
    study = open_study(database, settings=search)
    for _ in range(2):
        spec = study.next(worker=0)
        assert spec is not None
        study.fail(TrialFailure(trial=spec.number, step=0, reason=StopReason.ERROR, message="KeyError: 1"))
    again = open_study(database, settings=search, run=2)
    assert not again.finished
    Loop(again).run()
    counts = again.counts()
    assert counts["FAIL"] == 2  # type: ignore[index]
    assert counts["COMPLETE"] + counts["PRUNED"] == 8  # type: ignore[index]
