"""Policies that keep ranked tables answer as those do that look at every trial each time."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from automl.study.halving import HalvingPruner
from automl.study.peer import PeerPruner
from automl.study.stopping import Stall
from tests.study import reference
from tests.study.reference import EVERY, RUNGS, STEPS

DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)


class History:
    """A search as its storage shows it: trials are started, measured, parked, continued and ended at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.trials: list[FrozenTrial] = []
        self.parked: set[int] = set()

    def moves(self, count: int) -> Iterator[None]:
        for _ in range(count):
            self.move()
            yield

    def move(self, most: int = 1000) -> None:
        """most: trials in all."""
        live = [t.number for t in self.trials if not t.state.is_finished() and t.number not in self.parked]
        if live and self.random.random() < 0.8:
            self.measure(self.random.choice(live))
        elif self.parked and (len(self.trials) >= most or self.random.random() < 0.5):
            self.parked.discard(self.random.choice(sorted(self.parked)))
        elif len(self.trials) < most:
            state = TrialState.RUNNING if self.random.random() < 0.9 else TrialState.WAITING
            self.trials.append(create_trial(state=state))
            self.trials[-1].number = len(self.trials) - 1

    def measure(self, number: int) -> None:
        changed = copy.copy(self.trials[number])
        step = (changed.last_step or 0) + EVERY
        value = round(self.random.random() + 20 / step, 1)  # with ties
        changed.intermediate_values = {**changed.intermediate_values, step: value}
        fate = self.random.random()
        if step == STEPS:
            changed.state, changed.values = TrialState.COMPLETE, [value]
        elif fate < 0.1:
            changed.state = self.random.choice([TrialState.PRUNED, TrialState.FAIL])
            if fate < 0.03 and changed.state is TrialState.PRUNED:
                changed.user_attrs = {"stop_reason": "diverged"}
        else:
            changed.state = TrialState.RUNNING
        self.trials[number] = changed
        if step in RUNGS[:-1] and changed.state is TrialState.RUNNING and self.random.random() < 0.7:
            self.parked.add(number)

    def give_up(self, number: int) -> None:
        self.parked.discard(number)
        self.trials[number] = copy.copy(self.trials[number])
        self.trials[number].state = TrialState.PRUNED


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_halving_promotes_as_its_rule_says(seed: int, direction: StudyDirection) -> None:
    history, policy = History(seed), HalvingPruner(evaluate_every=EVERY, steps=STEPS)
    answers = set()
    for _ in history.moves(250):
        for may_start in (True, False):
            asked = {"direction": direction, "may_start": may_start}
            answer = policy.promote(history.trials, history.parked, **asked)  # type: ignore[arg-type]
            assert answer == reference.promote(history.trials, history.parked, **asked)  # type: ignore[arg-type]
            answers.add(answer)
    assert len(answers) > 5, "the case must promote something to show anything"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_peer_prunes_as_its_rule_says(seed: int, direction: StudyDirection) -> None:
    history, policy = History(seed), PeerPruner(evaluate_every=EVERY, steps=STEPS)
    answers = []
    for _ in history.moves(250):
        for trial in history.trials[-6:]:
            if trial.last_step in RUNGS[:-1]:
                answers.append(policy.judge(trial, history.trials, direction).prune)
                assert answers[-1] == reference.is_pruned(trial, history.trials, direction)
    assert {True, False} == set(answers)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_patience_ends_as_its_rule_says(seed: int, direction: StudyDirection) -> None:
    history, stall = History(seed), Stall([direction], 4)
    answers = set()
    for _ in history.moves(250):
        answers.add(stall.has_come(history.trials, history.parked))
        assert answers.issuperset({reference.has_stalled(history.trials, history.parked, direction, 4)})
    assert answers == {True, False}


@pytest.mark.parametrize("seed", range(6))
def test_what_is_given_up_would_never_be_promoted(seed: int) -> None:
    """The rest of the search is made up at random; whatever it brings, none of these would have gone on."""
    history, policy = History(seed), HalvingPruner(evaluate_every=EVERY, steps=STEPS)
    most, given_up, direction = 60, set[int](), StudyDirection.MINIMIZE
    for _ in range(900):
        history.move(most)
        had_they_stayed = history.parked | given_up
        for may_start in (True, False):
            chosen = reference.promote(history.trials, had_they_stayed, direction=direction, may_start=may_start)
            assert chosen not in given_up
        left = most - len(history.trials)
        for number in policy.hopeless(
            history.trials, history.parked, direction=direction, to_come=left, steps_left=None
        ):
            given_up.add(number)
            history.give_up(number)
    assert given_up


def test_another_study_is_taken_for_another_one() -> None:
    policy = HalvingPruner(evaluate_every=EVERY, steps=STEPS)
    for seed in (1, 2, 3):
        history = History(seed)
        for _ in history.moves(120):
            pass
        for direction in DIRECTIONS:
            asked = {"direction": direction, "may_start": False}
            answer = policy.promote(history.trials, history.parked, **asked)  # type: ignore[arg-type]
            assert answer == reference.promote(history.trials, history.parked, **asked)  # type: ignore[arg-type]
