"""The plain PEFT loop: one trial, one adapter on the shared frozen backbone, one generator of measurements.

It is the reference that any faster trainer must follow step by step, and the trainer of every method that cannot be
packed. It knows nothing of files, Optuna, Ray or SQL.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from automl.errors import OutOfMemory, is_out_of_memory
from automl.importance.heldout import HELD_OUT_ROWS, removal_effects
from automl.importance.sensitivity import Factors, Sensitivity, is_sample
from automl.lanes import trial_name
from automl.lora import LinearShape
from automl.methods.noise import Noise, NoisyRows, noisy, step_noise
from automl.methods.registry import METHODS
from automl.methods.seeding import dropout_state, set_dropout_state
from automl.models.inventory import head_modules, resolve_targets
from automl.models.quantised import weight_norms
from automl.outcomes import Outcomes
from automl.tasks.base import Batch, Row
from automl.tasks.batches import batch_rows, rows_at_once, some_of
from automl.tasks.reference import ReferredRows
from automl.training import optim
from automl.training.examine import Subject, examined, own_outcomes
from automl.training.held_out import measured_on
from automl.training.memory import TOKEN_BUDGET
from automl.training.parallel import SINGLE_PROCESS, BatchLoss, ParallelStrategy
from automl.training.peak import step_bytes
from automl.training.runtime import Runtime
from automl.training.state import TrainState
from automl.trial import Measurement, ModuleImportance, TrialSpec, check_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attached:
    """An adapter on the backbone, with what trains it. sensitivity: None if it is not collected."""

    model: Any
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    sensitivity: Sensitivity | None


class SoloTrial:
    """One trial: where it stands, and, while it trains, its adapter.

    state: where an earlier attempt stood; None starts at step 0. micro_batch, evaluation_tokens: how much is
    worked on at once; they shrink when memory is short, while the effective batch and the grid of steps stay. loss:
    that of the last step, mean over its batch. is_over: no step is left although the last one was not made.
    """

    def __init__(
        self,
        spec: TrialSpec,
        runtime: Runtime,
        state: TrainState | None = None,
        *,
        strategy: ParallelStrategy = SINGLE_PROCESS,
    ) -> None:
        self.spec = spec
        self.runtime = runtime
        self.step = state.step if state else 0
        self.seconds = state.seconds if state else 0.0
        self.tokens = state.tokens if state else 0
        self.micro_batch = state.micro_batch if state else spec.hyper.batch_size
        self.evaluation_tokens = state.evaluation_tokens if state else runtime.evaluation_tokens
        self.loss = math.nan
        self.is_over = False
        self._losses: list[float] = []  # of the steps since the last measurement
        self._strategy = strategy
        self._method = METHODS[spec.hyper.method]
        self._task = runtime.task.for_trial(spec.hyper)
        self._start = state
        self._layers: list[LinearShape] = []
        self._norms: list[float] = []
        self._frozen = 0
        self._attached: _Attached | None = None
        self._untuned = math.nan

    @property
    def model(self) -> Any:
        """The PEFT model; only while the trial is attached."""
        return self._adapter.model

    def attach(self) -> None:
        """Put the adapter on the backbone, as it was initialised or as it was left."""
        self._read_reference()
        self._untuned = self._measure_untuned()
        model = self._attach_adapter()
        parameters = optim.trainable(model)
        optimizer = optim.adamw(parameters, self.spec.hyper)
        if self._start is not None:
            self._put_back(self._strategy.scatter(self._start, parameters), model, parameters, optimizer)
        sensitivity = self._sensitivity(model)
        self._start = None  # the model holds it now
        self._attached = _Attached(model=model, parameters=parameters, optimizer=optimizer, sensitivity=sensitivity)

    def detach(self) -> None:
        """Take the adapter off; a backbone that is kept is as it was before. Does nothing if there is none."""
        if self._attached is not None:
            self._attached.optimizer.state.clear()
            if self._strategy.keeps_backbone:
                self._method.detach(self._attached.model)
            self._attached = None

    def go_back(self, state: TrainState) -> None:
        """Stand where the state was taken, to be measured and exported: the trial is over. Only while attached."""
        adapter = self._adapter
        self.is_over, self.step = True, state.step
        self._put_back(
            self._strategy.scatter(state, adapter.parameters), adapter.model, adapter.parameters, adapter.optimizer
        )
        if adapter.sensitivity is not None:
            adapter.sensitivity.load(state.importance)

    def snapshot(self) -> TrainState:
        """Copies of everything the trial needs to continue from here; only while it is attached."""
        adapter = self._adapter
        return TrainState(
            step=self.step,
            params={name: self._copied(tensor) for name, tensor in self._method.state(adapter.model).items()},
            moments=optim.moments(adapter.optimizer, adapter.parameters, self._copied),
            dropout=self._strategy.gather(dropout_state(adapter.model)),
            micro_batch=self.micro_batch,
            evaluation_tokens=self.evaluation_tokens,
            seconds=self.seconds,
            tokens=self.tokens,
            importance=adapter.sensitivity.state() if adapter.sensitivity else {},
            method=self._method.memory(adapter.model),
        )

    def take_step(self) -> None:
        """One optimizer step on the batch of this step. Raises Diverged, OutOfMemory or DataError."""
        adapter, hyper = self._adapter, self.spec.hyper
        with self._clock():
            adapter.model.train()
            rows = self._rows()
            masks = dropout_state(adapter.model)
            wanted = self._at_once(rows)
            self.loss, fitting = self._strategy.within_memory(
                wanted,
                lambda at_once: self._accumulate(rows, at_once, masks),
                what=f"{trial_name(self.spec.number)} ({self._size})",
            )
            if fitting < wanted:
                self.micro_batch = fitting
            check_finite({"training loss": self.loss}, self.step + 1)
            self._losses.append(self.loss)
            if adapter.sensitivity is not None and is_sample(self.step, self.spec.steps):
                adapter.sensitivity.add(self._factors(adapter.model))
            if (penalty := self._method.penalty(adapter.model)) is not None:
                torch.autograd.backward(penalty)
            optim.take_step(adapter.optimizer, adapter.parameters, hyper, step=self.step, steps=self.spec.steps)
            self._method.after_step(adapter.model, self.step)
            self.step += 1

    def measure(self) -> Measurement:
        """Metrics on the evaluation rows of this step, none at a checkpoint. Raises Diverged or OutOfMemory."""
        found: tuple[dict[str, float], Outcomes | None] = {}, None
        is_last = self.is_finished
        if rows := some_of(self.runtime.evaluation_rows, None if is_last else self.spec.rows_at(self.step)):
            task = None if is_last else self.runtime.task.briefly()
            found, self.evaluation_tokens = self._strategy.within_memory(
                self.evaluation_tokens,
                lambda at_once: self.runtime.evaluate_by_row(self._adapter.model, rows, at_once, task=task),
                what=f"the evaluation of {trial_name(self.spec.number)}",
            )
            self._strategy.after_evaluation(self._adapter.model)
        check_finite(found[0], self.step)
        return Measurement(
            trial=self.spec.number,
            step=self.step,
            metrics={**found[0], **self._kept()},
            seconds=self.seconds,
            tokens=self.tokens,
            importances=self._importances(),
            examined=own_outcomes(self.spec.examination, *found) if is_last else (),
            training_loss=self._training_loss(),
        )

    def _training_loss(self) -> float | None:
        """Mean over the steps since the last measurement; None if there were none."""
        losses, self._losses = self._losses, []
        return math.fsum(losses) / len(losses) if losses else None

    def _kept(self) -> dict[str, float]:
        """What is known at the last step of what the trial has forgotten."""
        kept = self.runtime.kept
        if kept is None or not self.is_finished:
            return {}
        found, self.evaluation_tokens = self._strategy.within_memory(
            self.evaluation_tokens,
            lambda at_once: self.runtime.evaluate_by_row(self._adapter.model, kept.rows, at_once, task=kept.task),
            what=f"the evaluation of {trial_name(self.spec.number)} on keep",
        )
        return kept.told(found[0], self._untuned, trial=self.spec.number)

    def examine(self, measurement: Measurement) -> Measurement:
        """The last measurement with what the trial's examination finds; the trial is as before."""
        return examined(measurement, self.spec.examination, self._subject)

    def measure_held_out(self, measurement: Measurement, rows: int = HELD_OUT_ROWS) -> Measurement:
        """The measurement with what removing each module's update would do to the loss on the first evaluation rows.

        One forward and one backward pass over so many rows, without dropout. The trial does not change. Unchanged too
        if there is no room in memory.
        """
        modules = [layer.path for layer in self._layers]
        return measured_on(self.runtime.evaluation_rows[:rows], measurement, modules, self._removal_effects)

    @property
    def is_due(self) -> bool:
        """Whether a measurement belongs to the current step."""
        return self.spec.is_due(self.step)

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return self.is_over or self.step >= self.spec.last_step

    @property
    def _size(self) -> str:
        """What the adapter's size follows from, in words."""
        hyper = self.spec.hyper
        if "rank" in self._method.takes:
            return f"rank {hyper.rank}, target {hyper.target}"
        own = (f"{each.name} {each.of(hyper)}" for each in self._method.settings if each.sized)
        return ", ".join((f"method {hyper.method}", *own))

    @property
    def _adapter(self) -> _Attached:
        assert self._attached is not None, "the trial is not attached"
        return self._attached

    def _attach_adapter(self) -> Any:
        runtime, hyper = self.runtime, self.spec.hyper
        self._layers = resolve_targets(runtime.model, hyper.target, runtime.targets)
        self._norms = weight_norms(runtime.model, self._layers)
        self._frozen = sum(parameter.nbytes for parameter in runtime.model.parameters())
        paths = [layer.path for layer in self._layers]
        heads = head_modules(runtime.model)
        model = self._method.attach(runtime.model, hyper, paths, heads, self.spec.seed, steps=self.spec.steps)
        self._strategy.distribute(model, seed=self.spec.seed)
        return model

    def _put_back(
        self, start: TrainState, model: Any, parameters: optim.Parameters, optimizer: torch.optim.Optimizer
    ) -> None:
        """What `snapshot` took, into a fresh adapter. Raises CheckpointError if it is of another trial."""
        self._method.load_state(model, dict(start.params))
        self._method.load_memory(model, start.method)
        optim.load_moments(optimizer, parameters, start.moments)
        set_dropout_state(model, start.dropout)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        return optim.copied(self._strategy.full(tensor))

    def _sensitivity(self, model: Any) -> Sensitivity | None:
        """The means, new or as they were left; None if they are not wanted or the method has no low-rank updates."""
        ranks = [update.a.shape[0] for update in self._method.low_rank(model)]
        if not self.runtime.importance or not ranks:
            return None
        is_apart = self.runtime.device.type != "cpu"
        sensitivity = Sensitivity(self._layers, max(ranks), self._norms, aside=is_apart)
        if self._start is not None:
            sensitivity.load(self._start.importance)
        return sensitivity

    def _factors(self, model: Any) -> list[Factors]:
        """The updates with their gradients, which are there after a backward pass."""
        full = self._strategy.full
        return [
            Factors(full(a), full(b), None if b.grad is None else full(b.grad), scaling)
            for _, a, b, scaling in self._method.low_rank(model)
        ]

    def _removal_effects(self, rows: Sequence[Row]) -> list[float]:
        """Effects of each removal on the loss of one batch; no gradients are left."""
        adapter = self._adapter
        adapter.model.eval()
        adapter.optimizer.zero_grad(set_to_none=True)
        try:
            loss = self._forward(rows)
            torch.autograd.backward(loss.total / max(1, loss.terms))
            return removal_effects(self._factors(adapter.model))
        finally:
            adapter.optimizer.zero_grad(set_to_none=True)

    def _importances(self) -> tuple[ModuleImportance, ...]:
        adapter = self._adapter
        if adapter.sensitivity is None:
            return ()
        return adapter.sensitivity.report(self._factors(adapter.model), step=self.step, steps=self.spec.steps)

    def _subject(self) -> Subject:
        model, runtime = self._adapter.model, self.runtime
        model.eval()
        updates = self._method.low_rank(model)

        def forward(batch: Batch) -> None:
            with torch.no_grad(), runtime.autocast():
                self._task.loss(model, batch)

        return Subject(
            updates=updates,
            modules=[model.get_base_model().get_submodule(update.path) for update in updates],
            train_rows=runtime.train_rows,
            rows=runtime.evaluation_rows,
            validation_rows=runtime.validation_rows,
            batch=runtime.batch,
            forward=forward,
            evaluate=lambda rows: runtime.evaluate_by_row(model, rows, self.evaluation_tokens),
            step_bytes=self._step_bytes if self._strategy.keeps_backbone else None,  # counted where all of it is
        )

    def _step_bytes(self) -> int:
        """Memory of a step over as many rows as were worked on at once."""
        model = self._adapter.model.train()
        try:
            rows = self._rows()
            rows = rows[: self._at_once(rows)]
            held = self._frozen + optim.held_bytes(self._adapter.optimizer)
            return step_bytes(model, lambda: self._forward(rows).total, held=held)
        finally:
            model.eval()

    def _rows(self) -> list[Row]:
        """The rows of this step: a function of data seed, step and batch size."""
        rows = self.runtime.train_rows
        return [
            rows[index] for index in batch_rows(self.spec.data_seed, self.step, self.spec.hyper.batch_size, len(rows))
        ]

    def _at_once(self, rows: Sequence[Row]) -> int:
        """Rows of a batch in one forward pass: as memory allows, and no more tokens than keep the device busy."""
        budget = TOKEN_BUDGET.get(self.runtime.device.type, TOKEN_BUDGET["cpu"])
        return min(self.micro_batch, rows_at_once(self._task, rows, budget))

    def _read_reference(self) -> None:
        """Let the untuned model read all rows of the trial before weights of it are trained."""
        rows, size = self.runtime.train_rows, self.spec.hyper.batch_size
        if isinstance(rows, ReferredRows):
            for step in range(self.step, self.spec.last_step):
                rows.fill(batch_rows(self.spec.data_seed, step, size, len(rows)))

    def _measure_untuned(self) -> float:
        """The metric of the rows of `keep:` before there is an adapter; NaN if there are none."""
        kept, model = self.runtime.kept, self.runtime.model
        if kept is None:
            return math.nan
        return kept.untuned(
            lambda: self._strategy.within_memory(
                self.evaluation_tokens,
                lambda at_once: self.runtime.evaluate_by_row(model, kept.rows, at_once, task=kept.task),
                what="the evaluation of keep",
            )[0][0]
        )

    def _accumulate(self, rows: Sequence[Row], at_once: int, masks: torch.Tensor | None) -> float:
        """Gradients of the mean loss over `rows`, `at_once` rows at a time; returns that loss.

        masks: state of the dropout generator to start from, so that it can be repeated.
        """
        adapter = self._adapter
        set_dropout_state(adapter.model, masks)
        adapter.optimizer.zero_grad(set_to_none=True)
        noise = step_noise(self.spec.hyper.neftune_alpha, self.spec.seed, self.step, self.runtime.device)

        def forward(part: Sequence[Row]) -> BatchLoss:
            return self._forward(part, noise)

        loss = self._strategy.accumulate(rows, at_once, forward, adapter.parameters, step=self.step)
        self.tokens += loss.tokens
        return loss.total / loss.terms

    def _forward(self, rows: Sequence[Row], noise: Noise | None = None) -> BatchLoss:
        batch = self.runtime.batch(rows)
        parts = [NoisyRows(noise, 0, batch["attention_mask"])] if noise else []
        with self.runtime.autocast(), noisy(self.runtime.model, parts):
            loss = self._task.loss(self._adapter.model, batch)
        return BatchLoss(loss.total, loss.count, int(batch["attention_mask"].sum()))

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Add the time of the block to the trial's training time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


def train(trial: SoloTrial) -> Generator[Measurement, None, None]:
    """Train to the last step, yielding a measurement at every step where one is due.

    At a yield `trial.snapshot()` holds everything to continue from there; closing the generator takes the adapter off
    the backbone. Raises Diverged if a loss or metric is not finite, OutOfMemory if the trial does not fit even with
    the smallest micro-batch, and whatever the task raises.
    """
    try:
        trial.attach()
        while not trial.is_finished:
            trial.take_step()
            if trial.is_due:
                yield trial.measure()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{trial_name(trial.spec.number)} does not fit into memory: {error}") from error
    finally:
        trial.detach()
