"""The trainings of a verification as trials for workers: handed out, and scored in SQL as soon as they are made."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from automl.errors import AutomlError, ResourceError, SearchError
from automl.storage.verification import ScoredSplit
from automl.trial import Action, Decision, Examined, Measurement, StopReason, TrialFailure, TrialSpec
from automl.verify.plan import Plan, Training, all_trainings, trial_spec
from automl.verify.protocol import DIVERGED, SECONDS, Scores, next_trainings

logger = logging.getLogger(__name__)

Keep = Callable[[Training, Mapping[str, float], Sequence[Examined]], None]
"""Stores the scores of a training, and what was examined, durably, and adds them to what is known."""


class Trainings:
    """What a verification still has to train and score on one split; follows `automl.execution.source.TrialSource`.

    Which trainings those are is what the rules of `protocol` make of the scores so far; every one is trained to the
    last step of its arm.

    number: the verification's.
    keep: called with a training's scores before `report` or `fail` returns.
    workers, slots: trainings are shared out evenly among so many workers, each of which holds at most so many.
    earlier: the latest attempt of an earlier run at a trial, 0 if there was none; its workers may still write.
    discard: called with a trial that has been scored.
    """

    def __init__(
        self,
        plan: Plan,
        scores: Scores,
        split: ScoredSplit,
        *,
        number: int,
        keep: Keep,
        workers: int,
        slots: int,
        earlier: Callable[[int], int] = lambda trial: 0,
        discard: Callable[[int], None] = lambda trial: None,
    ) -> None:
        self._plan = plan
        self._scores = scores
        self._split = split
        self._number = number
        self._keep = keep
        self._workers = workers
        self._slots = slots
        self._earlier = earlier
        self._discard = discard
        self._places = {training: place for place, training in enumerate(all_trainings(plan))}
        self._waiting: deque[Training] = deque()
        self._live: dict[int, _Live] = {}
        self._share = 0  # most trainings that a worker is given at once
        self._ended = 0
        self._ended_steps = 0
        self._wanted = 0
        self._wanted_steps = 0

    @property
    def live(self) -> Mapping[int, TrialSpec]:
        """See `TrialSource.live`."""
        return {number: live.spec for number, live in self._live.items()}

    @property
    def finished(self) -> bool:
        """See `TrialSource.finished`."""
        return not (self._live or self._waiting or self._missing())

    @property
    def wanted(self) -> int:
        """Trainings that this run was found to need so far."""
        return self._wanted

    @property
    def steps(self) -> int:
        """Training steps of this run so far; it may be asked for from another thread."""
        return self._ended_steps + sum(live.step for live in list(self._live.values()))

    def so_far(self) -> str:
        """How far the trainings are, in words; before any was handed out, that workers start."""
        if not self._wanted:
            return "workers start"
        steps = f"{self.steps:,} of {self._wanted_steps:,} training steps"
        return f"{self._ended} of {self._wanted} trainings, {steps}"

    def next(self, worker: int) -> TrialSpec | None:
        """See `TrialSource.next`. No worker gets more than its share while others may come for theirs."""
        if not (self._waiting or self._live):
            self._begin(self._missing())
        if not self._waiting or sum(live.worker == worker for live in self._live.values()) >= self._share:
            return None
        training = self._waiting.popleft()
        number = self._places[training]
        spec = replace(trial_spec(self._plan, training, number), attempt=self._earlier(number) + 1)
        self._live[number] = _Live(training, spec, worker)
        return spec

    def restart(self, trial: int, worker: int) -> TrialSpec:
        """See `TrialSource.restart`."""
        live = self._live[trial]
        live.spec, live.worker = replace(live.spec, attempt=live.spec.attempt + 1), worker
        return live.spec

    def report(self, measurements: Sequence[Measurement]) -> None:
        """See `TrialSource.report`. A training that has made its last step is scored."""
        for item in measurements:
            live = self._live.get(item.trial)
            if live is None:
                continue
            live.step = item.step
            if item.step >= live.spec.last_step:
                self._end(item.trial, {**item.metrics, SECONDS: item.seconds}, item.examined)

    def fail(self, failure: TrialFailure) -> None:
        """See `TrialSource.fail`. Raises ResourceError or SearchError if it says nothing about the configuration."""
        live = self._live.get(failure.trial)
        if live is None:
            return
        if failure.reason is not StopReason.DIVERGED:
            raise _error(live.training, failure)
        self._end(failure.trial, {DIVERGED: 1.0})

    def decide(self, trials: Sequence[int]) -> list[Decision]:
        """See `TrialSource.decide`. Every training goes on to its last step."""
        return [
            Decision(trial=trial, action=Action.CONTINUE, reason="trained to its last step")
            for trial in trials
            if trial in self._live
        ]

    def interrupt(self, reason: str) -> None:
        """See `TrialSource.interrupt`. Scores and slot files are all that another run needs."""
        self._live.clear()

    def _missing(self) -> list[Training]:
        trainings = next_trainings(self._plan, self._scores)
        return trainings if trainings and trainings[0].split == self._split else []

    def _begin(self, trainings: Sequence[Training]) -> None:
        """Let these be handed out, in as many rounds as the workers need, each with as many as the others."""
        if not trainings:
            return
        rounds = math.ceil(len(trainings) / (self._workers * self._slots))
        self._share = math.ceil(len(trainings) / (self._workers * rounds))
        self._waiting.extend(trainings)
        self._wanted += len(trainings)
        lengths = [self._plan.steps_of(each.arm) for each in trainings]
        self._wanted_steps += sum(lengths)
        steps = " to ".join(str(end) for end in sorted({min(lengths), max(lengths)}))
        what = f"{len(trainings)} trainings of {steps} steps, scored on {self._split} rows"
        logger.info("verification %d: %s", self._number, what)

    def _end(self, trial: int, metrics: Mapping[str, float], examined: Sequence[Examined] = ()) -> None:
        training = self._live[trial].training
        self._keep(training, metrics, examined)
        del self._live[trial]
        self._ended += 1
        self._ended_steps += self._plan.steps_of(training.arm)
        self._discard(trial)
        logger.info("%d of %d: %s", self._ended, self._wanted, _in_words(training, self._plan.metric, metrics))


@dataclass(slots=True)
class _Live:
    """A training that is with a worker. step: where it was last heard of."""

    training: Training
    spec: TrialSpec
    worker: int
    step: int = 0


def _error(training: Training, failure: TrialFailure) -> AutomlError:
    what = f"the training of {training.arm} with seed {training.seed} failed ({failure.reason})"
    said = failure.message.strip().splitlines()[-1]
    if failure.reason is StopReason.OOM:
        return ResourceError(f"{what}: {failure.message}; fewer run.slots need less memory")
    if failure.reason is StopReason.HOST_CRASH:
        return ResourceError(f"{what}: {said}; perhaps memory was short: fewer run.slots or run.workers")
    return SearchError(f"{what}: {said}")


def _in_words(training: Training, metric: str, metrics: Mapping[str, float]) -> str:
    value = "diverged" if metric not in metrics else f"{metric} {metrics[metric]:.4f} on {training.split} rows"
    return f"{training.arm}, seed {training.seed}, learning rate {training.learning_rate:.3g}: {value}"
