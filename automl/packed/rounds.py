"""Whose turn it is: trials of a pack train in rounds, and who joins late catches up before the others go on.

A round is one optimizer step of every trial that takes part. Time is counted in rounds, each trial has a time of its
own, and the round with the lowest time comes first. So the order of everything, and who reports together, depends on
the trials alone: training ahead while somebody decides about a cohort gives what waiting would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar


class Runner(Protocol):
    """What there is to know of a trial in the pack."""

    @property
    def number(self) -> int:
        """Number of the trial."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""

    @property
    def is_due(self) -> bool:
        """Whether a measurement belongs to the current step."""


class News(Protocol):
    """What a trial has to say: a measurement or a failure."""

    @property
    def trial(self) -> int:
        """Number of the trial."""


RunnerT = TypeVar("RunnerT", bound=Runner)
NewsT = TypeVar("NewsT", bound=News)


class Rounds(Generic[RunnerT, NewsT]):
    """The order of rounds and reports of the trials in `members`, which somebody else fills and empties.

    micro_step: lets the first of these trials, and whoever fits beside it, train; returns failures, and has taken those
    trials out of `members`. measure: makes the measurements of trials that are due. What has been measured is held
    until `cohort` hands it out, and its trial waits for that: it never trains past a measurement nobody has seen.
    """

    def __init__(
        self,
        members: Mapping[int, RunnerT],
        *,
        micro_step: Callable[[Sequence[RunnerT]], Sequence[NewsT]],
        measure: Callable[[Sequence[RunnerT]], Sequence[NewsT]],
    ) -> None:
        self._members = members
        self._micro_step = micro_step
        self._measure = measure
        self._now = 0  # when the last cohort was handed out
        self._times = dict.fromkeys(members, 0)
        self._end = 0  # of the round under way
        self._goals: dict[int, int] = {}  # steps to reach in it
        self._due: list[int] = []  # who has reached them and is to be measured
        self._held: dict[int, list[NewsT]] = {}

    def join(self, trial: int) -> None:
        """Let a trial that is in the pack now join at the time of the last cohort, wherever the others are."""
        self._times[trial] = self._now

    def leave(self, trial: int) -> None:
        """Forget a trial that is out of the pack, and what it had to report. Unknown trials are ignored."""
        self._times.pop(trial, None)
        self._goals.pop(trial, None)
        self._due = [number for number in self._due if number != trial]
        for time, news in list(self._held.items()):
            self._held[time] = [item for item in news if item.trial != trial]
            if not self._held[time]:
                del self._held[time]

    def tick(self) -> bool:
        """Do the next micro-step or measurements; False if there is none before a cohort is handed out or one joins."""
        if not (self._goals or self._due or self._begin_round()):
            return False
        behind = [self._members[number] for number, goal in self._goals.items() if self._members[number].step < goal]
        if behind:
            self._hold(self._micro_step(behind))
        elif self._goals:
            self._end_round()
        else:
            due, self._due = self._due, []
            self._hold(self._measure([self._members[number] for number in due]))
        return True

    def cohort(self) -> Sequence[NewsT]:
        """What was said first, in the order of admission; empty if there is something to do before, or never."""
        if self._goals or self._due or not self._held:
            return ()
        time = min(self._held)
        if any(self._times[member.number] < time for member in self._ready()):
            return ()
        self._now = time
        order = {number: place for place, number in enumerate(self._members)}
        return sorted(self._held.pop(time), key=lambda item: order.get(item.trial, -1))

    def _begin_round(self) -> bool:
        ready = self._ready()
        start = min((self._times[member.number] for member in ready), default=None)
        if start is None or start >= min(self._held, default=start + 1):
            return False
        self._end = start + 1
        self._goals = {member.number: member.step + 1 for member in ready if self._times[member.number] == start}
        return True

    def _end_round(self) -> None:
        self._times.update(dict.fromkeys(self._goals, self._end))
        self._due = [number for number in self._goals if self._members[number].is_due]
        self._goals = {}

    def _ready(self) -> list[RunnerT]:
        heard = {item.trial for news in self._held.values() for item in news}
        return [member for member in self._members.values() if not member.is_finished and member.number not in heard]

    def _hold(self, news: Sequence[NewsT]) -> None:
        for item in news:
            self._held.setdefault(self._end, []).append(item)
            if item.trial not in self._members:  # it has failed
                self._goals.pop(item.trial, None)
                self._times.pop(item.trial, None)
