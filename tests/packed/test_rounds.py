"""The order of rounds: who joins late catches up, and training ahead of decisions changes no cohort."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from automl.packed.rounds import Rounds


@dataclass
class Runner:
    """A trial that only counts. fails_at: the step it does not survive."""

    number: int
    steps: int = 8
    every: int = 3
    fails_at: int | None = None
    step: int = 0

    @property
    def is_finished(self) -> bool:
        return self.step >= self.steps

    @property
    def is_due(self) -> bool:
        return self.step % self.every == 0 or self.is_finished


@dataclass(frozen=True)
class Word:
    """What a trial says."""

    trial: int
    step: int
    is_failure: bool = False


class Pack:
    """Trials and their pace; a micro-step has room for two."""

    def __init__(self, *runners: Runner) -> None:
        self.members = {runner.number: runner for runner in runners}
        self.pace: Rounds[Runner, Word] = Rounds(self.members, micro_step=self._train, measure=self._measure)
        self.log: list[str] = []

    def join(self, runner: Runner) -> None:
        self.members[runner.number] = runner
        self.pace.join(runner.number)

    def leave(self, number: int) -> None:
        self.members.pop(number, None)
        self.pace.leave(number)

    def words(self) -> Sequence[Word]:
        while self.pace.tick():
            pass
        return self.pace.cohort()

    def cohort(self) -> list[tuple[int, int]]:
        return [(word.trial, word.step) for word in self.words()]

    def _train(self, waiting: Sequence[Runner]) -> list[Word]:
        failed = []
        for runner in waiting[:2]:
            runner.step += 1
            self.log.append(f"{runner.number}>{runner.step}")
            if runner.step == runner.fails_at:
                failed.append(Word(runner.number, runner.step, is_failure=True))
                del self.members[runner.number]
        return failed

    def _measure(self, due: Sequence[Runner]) -> list[Word]:
        self.log += [f"{runner.number}={runner.step}" for runner in due]
        return [Word(runner.number, runner.step) for runner in due]


def test_all_trials_of_a_round_report_together() -> None:
    pack = Pack(Runner(0), Runner(1), Runner(2))
    assert [pack.cohort() for _ in range(4)] == [
        [(0, 3), (1, 3), (2, 3)],
        [(0, 6), (1, 6), (2, 6)],
        [(0, 8), (1, 8), (2, 8)],
        [],
    ]


def test_trials_with_other_grids_report_when_they_are_due() -> None:
    pack = Pack(Runner(0, every=2, steps=4), Runner(1, every=3, steps=4))
    assert [pack.cohort() for _ in range(4)] == [[(0, 2)], [(1, 3)], [(0, 4), (1, 4)], []]


def test_who_comes_in_while_the_others_are_ahead_catches_up_and_reports_with_them() -> None:
    pack = Pack(Runner(0), Runner(1))
    pack.cohort()
    while pack.pace.tick():
        pass
    pack.log.clear()
    pack.leave(1)
    pack.join(Runner(2))
    assert pack.cohort() == [(0, 6), (2, 3)]
    assert pack.log == ["2>1", "2>2", "2>3", "2=3"]


def test_nobody_trains_past_a_measurement_that_has_not_been_handed_out() -> None:
    pack = Pack(Runner(0), Runner(1, every=5))
    while pack.pace.tick():
        pass
    assert (pack.members[0].step, pack.members[1].step) == (3, 3)
    assert not pack.pace.tick()
    assert pack.cohort() == [(0, 3)]
    assert pack.cohort() == [(1, 5)]


def test_what_a_trial_that_left_had_to_say_is_forgotten() -> None:
    pack = Pack(Runner(0), Runner(1, fails_at=2))
    while pack.pace.tick():
        pass
    pack.leave(1)
    assert pack.cohort() == [(0, 3)]


def test_a_failure_is_said_at_the_end_of_its_round() -> None:
    pack = Pack(Runner(0), Runner(1, fails_at=2))
    assert pack.cohort() == [(1, 2)]
    assert pack.cohort() == [(0, 3)]


@pytest.mark.parametrize("seed", range(30))
def test_training_ahead_changes_neither_cohorts_nor_curves(seed: int) -> None:
    patient = story(seed, ahead=random.Random(0), most=0)
    assert len(patient) > 5
    for impatience in range(3):
        assert story(seed, ahead=random.Random(impatience), most=60) == patient


def story(seed: int, *, ahead: random.Random, most: int) -> list[list[tuple[int, int]]]:
    """Cohorts of a search whose decisions follow from what was said; `most` ticks are made before they arrive."""
    chance = random.Random(seed)
    specs = [
        Runner(number, steps=chance.randint(4, 9), every=chance.choice([2, 3]), fails_at=chance.choice([None, None, 2]))
        for number in range(12)
    ]
    pack, waiting, cohorts = Pack(), list(specs), []
    opened: set[int] = set()
    while True:
        while len(opened) < 3 and waiting:
            opened.add(waiting[0].number)
            pack.join(waiting.pop(0))
        words = pack.words()
        if not words:
            return cohorts
        cohorts.append([(word.trial, word.step) for word in words])
        for _ in range(ahead.randint(0, most)):
            pack.pace.tick()
        for word in words:
            if word.is_failure:
                opened.discard(word.trial)
            elif word.step >= specs[word.trial].steps or (seed + word.trial * 7 + word.step) % 5 == 0:
                opened.discard(word.trial)
                pack.leave(word.trial)
