"""The values that travel between study, executor and trainer: specs, measurements, decisions, orders.

Frozen, picklable, and free of torch, Optuna, Ray and SQL, so every layer may speak them.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from automl.errors import CheckpointError, Diverged, MetricError, OutOfMemory, is_out_of_memory
from automl.lora import Hyperparameters

Scalar = bool | int | float | str
Metrics = Mapping[str, float]

LONGEST_TRACEBACK = 4000
"""Characters of a failed trial's traceback that are kept: the last ones, which say what happened."""


class TrialState(StrEnum):
    """States of a trial, with Optuna's names and meanings."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class StopReason(StrEnum):
    """Why a trial ended; the closed set stored beside its state."""

    FINISHED = "finished"  # COMPLETE: trained to the last step
    PRUNED = "pruned"  # PRUNED by the pruner, or still parked when the sweep ended
    DIVERGED = "diverged"  # PRUNED, infeasible: loss or metric not finite
    OOM = "oom"  # PRUNED, infeasible: does not fit into memory
    BUDGET = "budget"  # PRUNED: the sweep's step budget was spent (FAIL if it had not reported yet)
    INFEASIBLE = "infeasible"  # violates a constraint; FAIL: decided before training, PRUNED: by its last measurement
    ERROR = "error"  # FAIL: an exception in training or data; never retried
    HOST_CRASH = "host_crash"  # FAIL: killed its worker repeatedly while training alone
    LOST = "lost"  # FAIL: the driver died inside `ask`, before parameters were stored


class Cut(NamedTuple):
    """A smaller version of a finished adapter, of so many parameters in its low-rank matrices.

    name: under which its scores are kept. even: as many directions in every module as that pays for, instead of those
    that do the most per parameter over all modules.
    """

    name: str
    parameters: int
    even: bool


class Examination(NamedTuple):
    """What else is looked at when a trial has made its last step. Nothing of the trial depends on it.

    split: that trials are judged on. by_row: what the metrics were made of, row by row. on_validation: the metrics on
    the validation rows, too. memory: PEAK_BYTES, unless the trial was packed.
    """

    split: str
    cuts: tuple[Cut, ...] = ()
    by_row: bool = False
    on_validation: bool = False
    memory: bool = False


FORGETTING = "forgetting"
"""Metric under which is told, with the last measurement, by how much a trial is worse on the rows of `keep:` than the
untuned model; and the name by which constraints and `also_minimize` read it."""

KEPT = "kept"
"""Metric under which the value itself is told."""

PEAK_BYTES = "peak_bytes"
"""Metric under which the memory of a trial's step is told (`automl.training.peak`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Everything a trainer needs to run one trial, and all that its curve may depend on.

    seed drives adapter initialisation and dropout; data_seed the order of the batches (by default the same for all
    trials of a study, so that comparisons are paired). evaluations: (step, rows) of each measurement, the last at
    `steps`; if empty, all evaluation rows are used at every multiple of evaluate_every and at `steps`.
    checkpoint_every: steps after which the state is saved and reported without metrics, where no measurement is due;
    0 = measurements alone do that. attempt counts how often the trial was handed out (from 1) and fences off late
    results. examination: what the last measurement finds out besides.

    best_by: metric by which the best checkpoint is what the trial is worth; empty: it is the last one. early_stopping:
    end the trial where training on brings nothing (`automl.training.early_stopping`); only with best_by. stop_after:
    step after which training ends although the schedule goes on to `steps`; 0 = `steps`.
    """

    number: int
    params: Mapping[str, Scalar]
    hyper: Hyperparameters
    seed: int
    data_seed: int
    steps: int
    evaluate_every: int
    evaluations: tuple[tuple[int, int], ...] = ()
    checkpoint_every: int = 0
    attempt: int = 1
    examination: Examination | None = None
    best_by: str = ""
    early_stopping: bool = False
    stop_after: int = 0

    @property
    def last_step(self) -> int:
        """The step after which it is trained no further, unless it ends itself before."""
        return self.stop_after or self.steps

    def is_due(self, step: int) -> bool:
        """Whether the trial is saved and reports at this step: a measurement, or a checkpoint without metrics."""
        return self._is_measured(step) or self._is_checkpoint(step)

    def rows_at(self, step: int) -> int | None:
        """Evaluation rows of the measurement at this step; None = all there are, 0 = none: it is a checkpoint."""
        if self._is_checkpoint(step):
            return 0
        return next((rows for due, rows in self.evaluations if due == step), None)

    def _is_measured(self, step: int) -> bool:
        if self.evaluations:
            return any(due == step for due, _ in self.evaluations)
        return step % self.evaluate_every == 0 or step == self.last_step

    def _is_checkpoint(self, step: int) -> bool:
        return self.checkpoint_every > 0 and step % self.checkpoint_every == 0 and not self._is_measured(step)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleImportance:
    """How much the training loss of one trial depends on the update of one module, up to a step. All values are finite.

    module: dotted path in the backbone.
    rank: that of its update then.
    fraction_done: share of the trial's steps, in [0, 1].
    samples: steps at which it was measured.
    sensitivity, uncertainty: time means of the sums over components.
    effective_rank: exp of the entropy of the squared spectrum, in [1, rank], 0 while there is no update.
    relative_update: its Frobenius norm over the weight's.
    components: score of each component, largest singular value first.
    held_out: predicted rise of the loss on validation rows if the update were removed, held_out_error its standard
        error; None if not measured.

    Formulas: docs/importance.md.
    """

    module: str
    rank: int
    in_features: int
    out_features: int
    step: int
    fraction_done: float
    samples: int
    sensitivity: float
    uncertainty: float
    effective_rank: float
    relative_update: float
    components: tuple[float, ...]
    held_out: float | None = None
    held_out_error: float | None = None


class Examined(NamedTuple):
    """What an examination has found, of one thing on one split.

    name: a cut's, or empty for the trial itself. outcomes: as `automl.outcomes` writes them, empty if they were not
    wanted or the task does not tell.
    """

    name: str
    split: str
    metrics: Metrics
    outcomes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestCheckpoint:
    """What a trial that is over is worth, if its spec has best_by.

    metrics: of its best evaluation, at `step`, on all evaluation rows. reason: why it ended before its last step, in
    words; empty if it did not.
    """

    step: int
    metrics: Metrics
    reason: str = ""

    def in_words(self, steps: int) -> str:
        """Why the trial ended, and of what step this is; empty if it was trained to its last one, which is this.

        steps: that it was trained.
        """
        which = f"best at step {self.step}" if self.step != steps else ""
        return ", ".join(part for part in (self.reason, which) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """All metrics of one trial at one optimizer step. Every value is finite; a checkpoint has none.

    seconds, tokens: training time and non-padding training tokens since step 0, summed over all attempts. examples:
    rows trained on since then; whoever trains need not tell, the study knows.
    adapter: folder of the exported PEFT adapter, on the last measurement of a finished trial only. importances: those
    of the adapted modules so far, in module order; none if the trainer does not collect them. examined: by the last
    measurement of a trial that is to be examined. training_loss: mean over the steps since the measurement before; None
    if the trainer does not tell. best: on the last measurement of a trial whose spec has best_by.
    """

    trial: int
    step: int
    metrics: Metrics
    seconds: float = 0.0
    tokens: int = 0
    examples: int = 0
    adapter: str | None = None
    importances: tuple[ModuleImportance, ...] = ()
    examined: tuple[Examined, ...] = ()
    training_loss: float | None = None
    best: BestCheckpoint | None = None

    @property
    def worth(self) -> Metrics:
        """What the trial is worth with this measurement: at its best checkpoint, if that is told."""
        return self.metrics if self.best is None else self.best.metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFailure:
    """A trial that cannot go on: DIVERGED, OOM or ERROR. A failed trial is data, not an exception.

    tokens: as of a measurement, at the last step it made.
    """

    trial: int
    step: int
    reason: StopReason
    message: str
    tokens: int = 0


_SAID_IN_FULL = {
    Diverged: StopReason.DIVERGED,
    OutOfMemory: StopReason.OOM,
    CheckpointError: StopReason.ERROR,
    MetricError: StopReason.ERROR,
}
"""Errors of one trial whose message needs no traceback, and why the trial ended then."""


def failure_of(error: Exception, *, trial: int, step: int, tokens: int = 0) -> TrialFailure:
    """The exception of one trial as data: with its message if that says it all, else with the end of its traceback."""
    reason, message = _reason_of(error)
    return TrialFailure(trial=trial, step=step, reason=reason, message=message, tokens=tokens)


def _reason_of(error: Exception) -> tuple[StopReason, str]:
    for kind, reason in _SAID_IN_FULL.items():
        if isinstance(error, kind):
            return reason, str(error)
    if is_out_of_memory(error):
        return StopReason.OOM, f"does not fit into memory: {error}"
    return StopReason.ERROR, "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]


def check_finite(values: Mapping[str, float], step: int) -> None:
    """Raise Diverged naming the first loss or metric at a step that is not a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} at step {step}")


class Action(StrEnum):
    """What the study decides for a trial that has reported."""

    CONTINUE = "continue"
    PARK = "park"  # pause: the slot file stays, memory is freed, a later order may continue it
    PRUNE = "prune"  # stop for good
    FINISH = "finish"  # it has reached its last step


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The study's answer for one trial, always with a reason a person can read."""

    trial: int
    action: Action
    reason: str


class OrderKind(StrEnum):
    """What a worker may be told."""

    OPEN = "open"  # start the trial, or continue it from its slot file
    PARK = "park"  # free its memory, keep its slot file
    CLOSE = "close"  # free its memory, delete its slot file
    STOP = "stop"  # park everything and end the worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order from the driver to a worker. `spec` with OPEN only; `trial` with all but STOP."""

    kind: OrderKind
    trial: int = -1
    spec: TrialSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What a worker returns at once: measurements and failures that arrived together.

    epoch counts the starts of this worker, seq its cohorts since that start. hello marks the first cohort of a start:
    it is empty, and asks for every trial that belongs to the worker. baseline: metrics without any training, sent once
    per sweep by the first worker. capacity: most trials the worker can hold at once; it may become smaller.
    busy_seconds: spent on training and evaluating since hello; idle_seconds: spent on anything else, waiting for orders
    above all, while there were trials for it.
    """

    worker: int
    epoch: int
    seq: int
    hello: bool = False
    measurements: tuple[Measurement, ...] = ()
    failures: tuple[TrialFailure, ...] = ()
    baseline: Metrics | None = field(default=None)
    capacity: int = 1
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0
