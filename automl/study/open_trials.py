"""Trials that are RUNNING in Optuna, and where each of them is: with a worker, waiting for one, or paused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import optuna

from automl.lora import Hyperparameters
from automl.space.length import grid_steps
from automl.space.spec import SearchSettings
from automl.study.work import NOTHING, Work
from automl.trial import BestCheckpoint, Measurement, Metrics, Scalar, TrialFailure, TrialSpec


@dataclass(slots=True, kw_only=True)
class OpenTrial:
    """A trial that is RUNNING in Optuna.

    seen: steps whose values are stored. reached: the last of them, 0 if there is none. last: its newest measurement.
    judged: the step it was last decided on. best: what it is worth, told with the measurement of step `settled_at`. All
    steps but that of `best` lie on the study's grid (`automl.space.length`).
    """

    trial: optuna.Trial
    params: Mapping[str, Scalar]
    hyper: Hyperparameters
    seen: set[int] = field(default_factory=set)
    reached: int = 0
    last: Measurement | None = None
    judged: int = 0
    work: Work = NOTHING
    worker: int | None = None
    spec: TrialSpec | None = None
    best: BestCheckpoint | None = None
    settled_at: int = 0

    @property
    def number(self) -> int:
        """The trial's number, as Optuna counts it."""
        return self.trial.number

    @property
    def in_words(self) -> str:
        """Its parameters on a line, numbers to four digits."""
        return ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.params.items()
        )

    def is_over(self, steps: int) -> bool:
        """Whether it trains no further: it has made its last step, or has ended itself before."""
        return self.reached >= steps or self.is_settled

    @property
    def is_settled(self) -> bool:
        """Whether it is worth something else than its last measurement."""
        return self.best is not None and self.reached >= self.settled_at

    @property
    def worth(self) -> Metrics:
        """The metrics that it is worth, if it has any."""
        if self.best is not None and self.is_settled:
            return self.best.metrics
        return {} if self.last is None else self.last.metrics

    def with_examples(self, measurement: Measurement) -> Measurement:
        """The measurement with the rows that the trial was trained on by then; whoever trains knows tokens alone."""
        return replace(measurement, examples=self.examples_at(measurement.step))

    def examples_at(self, step: int) -> int:
        """Rows that it was trained on by then."""
        return step * self.hyper.batch_size

    def worked(self, tokens: int, examples: int) -> Work:
        """Note what it was trained on by now; returns what that is beside what was known."""
        before = self.work
        self.work = Work(max(tokens, before.tokens), max(examples, before.examples))
        return Work(self.work.tokens - before.tokens, self.work.examples - before.examples)

    def worked_until(self, failure: TrialFailure) -> Work:
        """Work since it was last asked for, of a trial that has failed; no rows of one that says nothing of tokens."""
        return self.worked(failure.tokens, self.examples_at(failure.step) if failure.tokens else 0)

    def position(self, metric: str) -> str:
        """How far it has come, with the value of the metric there, in words; empty before the first measurement."""
        return "" if self.last is None else f"at step {self.last.step}, {metric} {self.last.metrics[metric]:.4g}"

    def steps_of(self, measurement: Measurement, settings: SearchSettings) -> tuple[int, ...]:
        """The steps on the grid that a measurement of the trial speaks of, ascending."""
        return grid_steps(settings, measurement.step, self.hyper.batch_size)

    def has_seen(self, measurement: Measurement, settings: SearchSettings) -> bool:
        """Whether its value is stored."""
        return self.seen.issuperset(self.steps_of(measurement, settings))

    def take(self, measurement: Measurement, steps: Sequence[int]) -> None:
        """Note a measurement whose value is stored. steps: those on the grid that it speaks of, ascending."""
        self.seen.update(steps)
        if steps[-1] > self.reached:
            self.reached, self.last = steps[-1], measurement


class OpenTrials:
    """The trials in progress by number, each in one place: live (with a worker), queued (interrupted, to be handed out
    again) or parked (paused by a ParkingPruner)."""

    def __init__(self) -> None:
        self.live: dict[int, OpenTrial] = {}
        self.queued: dict[int, OpenTrial] = {}
        self.parked: dict[int, OpenTrial] = {}

    def __len__(self) -> int:
        return len(self.live) + len(self.queued) + len(self.parked)

    def __iter__(self) -> Iterator[OpenTrial]:
        for place in self._places:
            yield from place.values()

    def hand_out(self, opened: OpenTrial) -> None:
        """Note that it is with a worker."""
        self._put(opened, self.live)

    def queue(self, opened: OpenTrial) -> None:
        """Note that it waits for a worker."""
        self._put(opened, self.queued)

    def park(self, opened: OpenTrial) -> None:
        """Note that it is paused."""
        self._put(opened, self.parked)

    def forget(self, number: int) -> None:
        """Forget a trial that has ended."""
        for place in self._places:
            place.pop(number, None)

    def reached(self) -> Counter[int]:
        """Trials by their last step."""
        return Counter(opened.reached for opened in self)

    def _put(self, opened: OpenTrial, place: dict[int, OpenTrial]) -> None:
        self.forget(opened.number)
        place[opened.number] = opened

    @property
    def _places(self) -> tuple[dict[int, OpenTrial], ...]:
        return self.live, self.queued, self.parked
