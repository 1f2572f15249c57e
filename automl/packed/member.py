"""One trial in a pack: its adapter, its place in the data, and what it has gathered for the step under way."""

from __future__ import annotations

import math

import torch

from automl.errors import OutOfMemory
from automl.importance.sensitivity import Factors, Sensitivity, is_sample
from automl.lanes import trial_name
from automl.methods.noise import NoisyRows, step_noise
from automl.packed.adapter import Adapter
from automl.packed.workload import MicroBatch, Workload
from automl.tasks.base import Row
from automl.tasks.batches import batch_rows, require_targets, rows_at_once
from automl.training.schedule import lr_multiplier
from automl.training.state import TrainState
from automl.trial import ModuleImportance, TrialSpec


class Member:
    """A trial, its adapter, and the task as it learns it.

    The batch of a step is gathered over micro-batches of `micro_batch` rows.

    sensitivity: None if it is not collected. split: tokens above which a batch is computed in parts; None: only where
    memory is short. is_over: no step is left although the last one was not made.
    """

    def __init__(
        self,
        spec: TrialSpec,
        adapter: Adapter,
        workload: Workload,
        state: TrainState | None = None,
        *,
        sensitivity: Sensitivity | None = None,
        split: int | None = None,
    ) -> None:
        self.spec = spec
        self.adapter = adapter
        self.task = workload.task.for_trial(spec.hyper)
        self.micro_batch = spec.hyper.batch_size
        self.evaluation_tokens = workload.evaluation_tokens
        self.seconds = 0.0
        self.tokens = 0
        self.is_over = False
        self._losses: list[float] = []  # of the steps since the last measurement
        self._sensitivity = sensitivity
        self._workload = workload
        self._upcoming: MicroBatch | None = None
        self._split = split
        self._batch: list[Row] = []  # of this step, once it was read
        if state is not None:
            self._restore(state)
        self._begin_step()

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.spec.number

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.adapter.step

    @property
    def rows_done(self) -> int:
        """Rows of the batch of this step that have been added."""
        return self._rows

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return self.is_over or self.step >= self.spec.last_step

    @property
    def is_due(self) -> bool:
        """Whether a measurement belongs to the current step."""
        return self.spec.is_due(self.step)

    def noisy_rows(self, micro: MicroBatch, start: int) -> list[NoisyRows]:
        """The noise of a micro-batch whose rows begin there in a pass, if the trial has any; it is drawn once."""
        return [NoisyRows(self._noise, start, micro.batch["attention_mask"])] if self._noise else []

    def upcoming(self, device: torch.device) -> MicroBatch:
        """The next rows of the batch of this step: a function of data seed, step and batch size."""
        if self._upcoming is None:
            if not self._batch:
                rows, size = self._workload.train_rows, self.spec.hyper.batch_size
                self._batch = [rows[at] for at in batch_rows(self.spec.data_seed, self.step, size, len(rows))]
            chosen = self._batch[self._rows : self._rows + self._at_once]
            self._upcoming = self._workload.micro_batch(chosen, device)
        return self._upcoming

    @property
    def _at_once(self) -> int:
        """Rows of a micro-batch: as memory allows, and no more tokens than keep the device busy."""
        if self._split is None or not self._batch:
            return self.micro_batch
        return min(self.micro_batch, rows_at_once(self.task, self._batch, self._split))

    def add(self, batch: MicroBatch, total: float, count: int, seconds: float) -> bool:
        """Book a micro-batch whose gradient has been added; returns whether that completed an optimizer step.

        Raises DataError if the whole batch has nothing to learn from.
        """
        self._rows += batch.examples
        self._total += total
        self._count += count
        self._tokens += batch.tokens
        self.seconds += seconds
        self._upcoming = None
        if self._rows < self.spec.hyper.batch_size:
            return False
        self._finish_step()
        return True

    def restart_step(self) -> None:
        """Forget what the step under way has gathered; it begins again with the same rows and the same masks."""
        self.adapter.gradient.zero_()
        self.adapter.set_generator_state(self._masks)
        self._begin_step()

    def halve_rows(self, error: BaseException) -> None:
        """Restart the step with half as many rows at once. Raises OutOfMemory if that is less than one."""
        at_once = self._at_once
        if at_once == 1:
            raise OutOfMemory(
                f"{trial_name(self.number)} (rank {self.spec.hyper.rank}, target {self.spec.hyper.target}) "
                f"does not fit into memory even one row at a time: {error}"
            ) from error
        self.micro_batch = at_once // 2
        self.restart_step()

    def importances(self) -> tuple[ModuleImportance, ...]:
        """Importances of the adapted modules so far; none if they are not collected. Only between two steps."""
        if self._sensitivity is None:
            return ()
        self.adapter.settle()
        return self._sensitivity.report(factors(self.adapter), step=self.step, steps=self.spec.steps)

    def training_loss(self) -> float | None:
        """Mean over the steps since this was last asked; None if there were none."""
        losses, self._losses = self._losses, []
        return math.fsum(losses) / len(losses) if losses else None

    def go_back(self, state: TrainState) -> None:
        """Stand where the state was taken, to be measured and exported; the trial is over. Only between two steps."""
        self.is_over = True
        self._restore(state)
        self._begin_step()

    def snapshot(self) -> TrainState:
        """Everything the trial needs to continue from here; only between two steps."""
        assert self._rows == 0, "a step is under way"
        return TrainState(
            step=self.step,
            params=self.adapter.parameters(),
            moments=self.adapter.moments(),
            dropout=self.adapter.generator_state(),
            micro_batch=self.micro_batch,
            evaluation_tokens=self.evaluation_tokens,
            seconds=self.seconds,
            tokens=self.tokens,
            importance=self._sensitivity.state() if self._sensitivity else {},
            method=self.adapter.memory(),
        )

    def _restore(self, state: TrainState) -> None:
        self.adapter.restore(state.step, state.params, state.moments, state.dropout, state.method)
        self.micro_batch, self.evaluation_tokens = state.micro_batch, state.evaluation_tokens
        self.seconds, self.tokens = state.seconds, state.tokens
        if self._sensitivity is not None:
            self._sensitivity.load(state.importance)

    def _begin_step(self) -> None:
        self._rows = self._count = self._tokens = 0
        self._total = 0.0
        self._upcoming = None
        self._noise = step_noise(self.spec.hyper.neftune_alpha, self.spec.seed, self.step, self.adapter.device)
        self._masks = self.adapter.generator_state()

    def _finish_step(self) -> None:
        spec, hyper = self.spec, self.spec.hyper
        require_targets(self._count, step=self.step)
        self.loss = self._total / self._count
        self._losses.append(self.loss)
        if self._sensitivity is not None and is_sample(self.step, spec.steps):
            self._sensitivity.add(factors(self.adapter), self._count)
        multiplier = lr_multiplier(self.step, steps=spec.steps, warmup=hyper.warmup, schedule=hyper.schedule)
        self._batch = []
        self.adapter.finish_step(self._count, hyper.learning_rate * multiplier)
        self.tokens += self._tokens
        self._begin_step()


def factors(adapter: Adapter) -> list[Factors]:
    """The updates and what has been gathered of their gradients: a sum over terms."""
    scaling = adapter.hyper.scaling
    return [Factors(part.a, part.b, part.b_grad, scaling) for part in adapter.low_rank.values()]
