"""Several sources as one: who is asked next, whose news is whose, and what one that gives up means to the others."""

from __future__ import annotations

import pytest

from automl.errors import SearchError
from automl.execution.side_by_side import SideBySide
from automl.lanes import number_in
from automl.trial import Action, Measurement, StopReason, TrialFailure, TrialSpec
from tests.execution.scripted import ScriptedStudy


class Hopeless(ScriptedStudy):
    """Hands out one trial; after that too many have failed."""

    def next(self, worker: int) -> TrialSpec | None:
        if self.live or not self._left:
            raise SearchError("too many trials have failed")
        return super().next(worker)


class Deaf(ScriptedStudy):
    """Cannot note that it was interrupted."""

    def interrupt(self, reason: str) -> None:
        raise OSError("no")


def numbers(source: SideBySide, count: int) -> list[int]:
    specs = [source.next(0) for _ in range(count)]
    return [spec.number for spec in specs if spec is not None]


def measured(trial: int, step: int) -> Measurement:
    return Measurement(trial=trial, step=step, metrics={"loss": 1.0})


def test_who_has_the_fewest_trials_at_work_is_next() -> None:
    source = SideBySide([ScriptedStudy(3), ScriptedStudy(2), ScriptedStudy(1)])
    assert numbers(source, 7) == [0, number_in(1, 0), number_in(2, 0), 1, number_in(1, 1), 2]
    assert sorted(source.live) == [0, 1, 2, number_in(1, 0), number_in(1, 1), number_in(2, 0)]
    assert all(spec.number == number for number, spec in source.live.items())


def test_every_source_hears_of_its_own_trials_by_their_own_numbers() -> None:
    studies = [ScriptedStudy(1), ScriptedStudy(2, {(1, 2): Action.PRUNE})]
    source = SideBySide(studies)
    numbers(source, 3)
    second, third = number_in(1, 0), number_in(1, 1)
    source.report([measured(0, 2), measured(third, 2), measured(second, 2)])
    decisions = source.decide([0, second, third])
    assert [(each.trial, each.action) for each in decisions] == [
        (0, Action.CONTINUE),
        (second, Action.CONTINUE),
        (third, Action.PRUNE),
    ]
    assert studies[0].log == ["report 0@2", "continue 0@2"]
    assert studies[1].log == ["report 1@2", "report 0@2", "continue 0@2", "prune 1@2"]
    source.fail(TrialFailure(trial=second, step=3, reason=StopReason.ERROR, message="boom"))
    assert studies[1].log[-1] == "fail 0 error"
    restarted = source.restart(0, 1)
    assert (restarted.number, restarted.attempt) == (0, 2)
    assert not source.finished


def test_a_source_that_gives_up_ends_and_the_others_go_on() -> None:
    source = SideBySide([Hopeless(3), ScriptedStudy(2)])
    assert numbers(source, 4) == [0, number_in(1, 0), number_in(1, 1)]
    assert {lane: str(error) for lane, error in source.errors.items()} == {0: "too many trials have failed"}
    for step in (2, 4):
        source.report([measured(number_in(1, 0), step), measured(number_in(1, 1), step)])
        source.decide([number_in(1, 0), number_in(1, 1)])
    assert not source.finished  # the trial that was under way goes on
    source.report([measured(0, 4)])
    source.decide([0])
    assert source.finished


def test_all_are_interrupted_though_one_cannot_note_it() -> None:
    studies = [Deaf(1), ScriptedStudy(1)]
    with pytest.raises(OSError, match="no"):
        SideBySide(studies).interrupt("SIGTERM")
    assert studies[1].log == ["interrupt SIGTERM"]
