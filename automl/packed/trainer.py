"""Many LoRA trials on one frozen backbone, step by step together. A library of its own: torch in, measurements out.

Each trial follows the curve it would have alone. A round is one optimizer step of every trial in the pack; it consists
of micro-steps, each one forward and one backward pass of the backbone over the next batches of several trials. Losses,
clipping and optimizer steps are each trial's own.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from automl.errors import Diverged, OutOfMemory, TargetError
from automl.importance.heldout import HELD_OUT_ROWS, in_batches, removal_effects, with_held_out
from automl.importance.sensitivity import Sensitivity, weight_norms
from automl.lora import Hyperparameters, LinearShape, check_pattern
from automl.models.calling import first_line
from automl.models.inventory import head_modules, linear_layers, resolve_targets
from automl.packed.adapter import COUNTED_STATE, Adapter
from automl.packed.bank import Bank, BankSize, Storage
from automl.packed.bank_step import BankStep, bank_class
from automl.packed.body import Body, Call, Outputs, View
from automl.packed.convert import adapter_config, made_anew_parameters, write_adapter
from automl.packed.first_token import narrow, narrow_module, narrowed_layers
from automl.packed.heads import PackedHeads, can_batch
from automl.packed.kernels import KERNELS, OUTPUT_KERNELS, choose_kernel
from automl.packed.layout import adapter_layout
from automl.packed.linear import PackedLinear
from automl.packed.losses import row_losses
from automl.packed.member import Member
from automl.packed.memory import available_bytes, capacity, keep_freed_memory
from automl.packed.recompute import Recomputation, recomputable
from automl.packed.rounds import Rounds
from automl.packed.segments import Segment, Segmentation
from automl.packed.sensing import factors, new_sensitivity
from automl.packed.workload import MicroBatch, Workload
from automl.tasks.base import Row
from automl.training.memory import is_out_of_memory
from automl.training.state import TrainState
from automl.trial import Measurement, StopReason, TrialFailure, TrialSpec

logger = logging.getLogger(__name__)

TOKEN_BUDGET = {"cpu": 4096, "cuda": 8192}
"""Tokens of one micro-step, padding included, by type of device. A trial whose batch is larger goes alone."""

CPU = torch.device("cpu")

SHORT_ROWS = 24
"""Tokens up to which attention as batched products beats torch's flash kernel on a CPU: 1.4 to 2 times at 12 to 24."""

LONGEST_TRACEBACK = 8000
"""Characters of a failed trial's traceback that are kept: the last ones."""

Event = Measurement | TrialFailure


class _Turn(NamedTuple):
    """One trial's part in a micro-step. call: of the body; None in a bank, where the model is called for all."""

    member: Member
    micro: MicroBatch
    call: Call | None


class PackedTrainer:
    """The frozen backbone with the adapters that are being trained on it.

    model: frozen, in eval mode, on its device, without dropout of its own; `close` gives it back as it was. targets:
    target sets of the user. precision: fp32, bf16h (products with frozen weights in bfloat16) or bf16 (the model is
    held in bfloat16 and computes under autocast; adapters, heads and optimizer are float32). kernel: a name of KERNELS,
    None = the fastest that works here. token_budget: of one micro-step; results do not depend on it. bank: room for
    slots that are computed together and not one by one; pays where launching kernels is what takes time. A trial that
    does not fit into it is trained beside it. recompute: gradient checkpointing of the body's layers. graphs: record
    a bank's micro-steps as CUDA graphs, on a GPU. importance: how
    much the loss of each trial hangs on each module's update is measured on the way. parted: why a micro-step of
    several trials last failed, so that each went alone; empty if none did.
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        *,
        targets: Mapping[str, Sequence[str]] | None = None,
        precision: str = "fp32",
        kernel: str | None = None,
        token_budget: int | None = None,
        bank: BankSize | None = None,
        recompute: bool = False,
        graphs: bool = True,
        importance: bool = False,
    ) -> None:
        self.model = model
        self.workload = workload
        self.device = next(model.parameters()).device
        self.kernel = kernel or choose_kernel(precision, self.device)
        self.token_budget = token_budget or TOKEN_BUDGET.get(self.device.type, TOKEN_BUDGET["cpu"])
        self.members: dict[int, Member] = {}
        if self.device.type == "cpu":
            keep_freed_memory()
        self.parted = ""
        self._precision = precision
        self._uses_graphs = graphs and self.device.type == "cuda"
        self._importance = importance
        self._norms: dict[LinearShape, float] = {}
        self._targets = targets or {}
        self.heads = {name: model.get_submodule(name) for name in head_modules(model)}
        self._resolved: dict[str, list[LinearShape]] = {}
        self._segmentation = Segmentation()
        self._body = Body(model)
        self._packed = self._pack_layers()
        self._recomputation = Recomputation(recomputable(self._body.module), self._segmentation) if recompute else None
        self._bank = self._make_bank(bank) if bank else None
        self._packed_heads = PackedHeads(self.heads, self._segmentation) if self._bank else None
        self._together = self._make_together(self._bank) if self._bank else None
        self._narrow = self._narrow_last_layer()

    # In and out

    def admit(self, spec: TrialSpec, state: TrainState | None = None) -> None:
        """Let a trial join at its next step, as new or where `state` was taken; the others do not notice.

        Raises TargetError, CheckpointError if the state does not fit, OutOfMemory.
        """
        paths = self._paths(spec)
        rank = max(map(spec.hyper.rank_of, paths))
        is_counted = self._bank is not None
        if state is not None and state.dropout is not None:  # its masks go on as they began
            is_counted = state.dropout.shape == COUNTED_STATE
        self._check_room(spec)
        storage = self._bank.take(rank) if self._bank and self._bank.holds(paths, rank) and is_counted else None
        try:
            adapter = self._adapter(spec, storage, is_counted=is_counted)
            sensitivity = self._sensitivity(adapter, self.layers(spec.hyper.target)) if self._importance else None
            self.members[spec.number] = Member(spec, adapter, self.workload, state, sensitivity=sensitivity)
        except BaseException:
            if self._bank is not None and storage is not None:
                self._bank.give_back(storage)
            raise

    def evict(self, trial: int) -> None:
        """Free a trial's memory; unknown trials are ignored. What it was is kept with `snapshot` before."""
        member = self.members.pop(trial, None)
        if member is not None and (bank := member.adapter.storage.bank) is not None:
            bank.give_back(member.adapter.storage)

    def snapshot(self, trial: int) -> TrainState:
        """Everything a trial needs to continue from here, in this pack or in another."""
        return self.members[trial].snapshot()

    def export(self, trial: int, folder: Path, *, base: str) -> None:
        """Write a trial's adapter and head into `folder`, which exists, as `PeftModel.from_pretrained` reads them.

        base: folder or hub id of the backbone, for adapter_config.json.
        """
        spec = self.members[trial].spec
        config = adapter_config(self.model, spec.hyper, self._paths(spec), list(self.heads), base=base)
        parameters = {**self.members[trial].adapter.parameters(), **made_anew_parameters(self.model)}
        write_adapter(folder, parameters, config)

    def layers(self, target: str) -> list[LinearShape]:
        """The layers that a target set means in this model."""
        if target not in self._resolved:
            self._resolved[target] = resolve_targets(self.model, target, self._targets)
        return self._resolved[target]

    def close(self) -> None:
        """Take everything off the model; it is as it was before."""
        self.members.clear()
        self._body.close()
        if self._packed_heads is not None:
            self._packed_heads.close()
        if self._recomputation is not None:
            self._recomputation.close()
        for layer in self._packed:
            del self.model.get_submodule(layer.path).forward
        if self._narrow is not None:
            del self._narrow.forward

    # Training

    def train(self, specs: Iterable[TrialSpec], *, slots: int) -> Iterator[Event]:
        """Train all these trials to their last step, at most `slots` at once; yields measurements and failures.

        A trial stays in the pack until its last measurement has been yielded: `export` and `snapshot` work till then.
        """
        waiting = iter(specs)
        while True:
            for spec in _take(waiting, slots - len(self.members)):
                self.admit(spec)
            if not self.members:
                return
            for event in self.advance():
                yield event
                if isinstance(event, Measurement) and self.members[event.trial].is_finished:
                    self.evict(event.trial)

    def advance(self) -> list[Event]:
        """Rounds until at least one trial is due or fails; measurements and failures in the order of admission.

        A trial that failed has left the pack. Nothing at once if no trial has steps left.
        """
        pace: Rounds[Member, Event] = Rounds(self.members, micro_step=self.micro_step, measure=self.measured)
        while pace.tick():
            pass
        return list(pace.cohort())

    def round(self, members: Sequence[Member]) -> list[TrialFailure]:
        """One optimizer step of each of these trials; returns those that failed. The rest is untouched by them."""
        failures: list[TrialFailure] = []
        goals = {member.number: member.step + 1 for member in members}
        while True:
            waiting = [
                member for member in members if member.number in self.members and member.step < goals[member.number]
            ]
            if not waiting:
                return failures
            failures += self.micro_step(waiting)

    def evaluate(self, member: Member, max_tokens: int) -> dict[str, float]:
        """All metrics of the task over the evaluation rows of the trial's step, no dropout; none at a checkpoint."""
        rows = member.spec.rows_at(member.step)
        return {} if rows == 0 else self._evaluate(member.adapter, max_tokens, rows)

    def baseline(self) -> dict[str, float]:
        """All metrics of the bare backbone."""
        return self._evaluate(None, self.workload.evaluation_tokens)

    def _evaluate(self, adapter: Adapter | None, max_tokens: int, rows: int | None = None) -> dict[str, float]:
        if adapter is not None:
            adapter.settle()
        view = View(self.model, adapter.head if adapter else {})
        batches = self.workload.evaluation_batches(max_tokens, self.device, rows=rows)
        with torch.no_grad(), self._segmentation.alone(adapter), self._casting():
            return self.workload.task.evaluate(view, batches, self.workload.tokenizer)  # type: ignore[arg-type]

    def measured(self, member: Member) -> Event:
        """The trial's measurement at its current step; if it has none, the trial has failed and left the pack."""
        try:
            metrics = self._measure(member)
            member.check_finite(metrics, member.step)
        except Exception as error:  # noqa: BLE001 - the edge: what a task or model raises fails one trial
            return self._fail(member, error)
        return Measurement(
            trial=member.number,
            step=member.step,
            metrics=metrics,
            seconds=member.seconds,
            tokens=member.tokens,
            importances=member.importances(),
        )

    def measure_held_out(self, measurement: Measurement, rows: int = HELD_OUT_ROWS) -> Measurement:
        """The same with what removing each module's update would do to the loss on the first evaluation rows.

        One forward and one backward pass over so many rows, without dropout, for this trial alone, if there is room.
        Nobody changes by it. Between two steps of the trial only.
        """
        if not (measurement.importances and rows):
            return measurement
        adapter = self.members[measurement.trial].adapter
        batches = in_batches(self.workload.evaluation_rows[:rows])
        try:
            effects = [self._removal_effects(adapter, batch) for batch in batches]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("trial %d: no memory to look at held-out rows: %s", measurement.trial, error)
            return measurement
        finally:
            adapter.gradient.zero_()
        importances = with_held_out(measurement.importances, list(adapter.low_rank), effects)
        return replace(measurement, importances=importances)

    def _removal_effects(self, adapter: Adapter, rows: Sequence[Row]) -> list[float]:
        """Of one batch. The adapter's gradient must be zero, or of another batch."""
        adapter.gradient.zero_()
        micro = self.workload.micro_batch(rows, self.device)
        view = View(self.model, adapter.head)
        with self._segmentation.alone(adapter), self._around(micro.width):
            parts = self.workload.task.loss(view, micro.batch)  # type: ignore[arg-type]
            torch.autograd.backward(parts.total / max(1, parts.count))
        return removal_effects(factors(adapter))

    def _sensitivity(self, adapter: Adapter, layers: Sequence[LinearShape]) -> Sensitivity:
        new = [layer for layer in layers if layer not in self._norms]
        self._norms.update(zip(new, weight_norms(self.model, new), strict=True))
        return new_sensitivity(adapter, layers, [self._norms[layer] for layer in layers])

    def _measure(self, member: Member) -> dict[str, float]:
        while True:
            try:
                return self.evaluate(member, member.evaluation_tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if member.evaluation_tokens == 1:
                    raise OutOfMemory(f"the evaluation of trial {member.number} does not fit: {error}") from error
            member.evaluation_tokens //= 2

    # One micro-step

    def micro_step(self, waiting: Sequence[Member]) -> list[TrialFailure]:
        """Forward and backward pass for the first waiting trial and all that fit beside it; returns who failed."""
        failures: list[TrialFailure] = []
        turns: list[_Turn] = []
        budget = self.token_budget
        for member in waiting:
            try:
                micro = member.upcoming(CPU if member.adapter.storage.bank else self.device)
                if turns and not (self._fits_beside(turns[0], member, micro) and micro.rows * micro.width <= budget):
                    continue
                turns.append(
                    _Turn(member, micro, None if member.adapter.storage.bank else self._recorded(member, micro))
                )
                budget -= micro.rows * micro.width
            except Exception as error:  # noqa: BLE001 - the edge: one trial's data or task
                failures.append(self._fail(member, error))
        if not turns:
            return failures
        try:
            return failures + self._pass(turns)
        except Exception as error:  # noqa: BLE001 - the edge: somebody's rows cannot be computed
            for turn in turns:
                turn.member.restart_step()
            if len(turns) == 1:
                return failures + self._blamed(turns[0].member, error)
            self.parted = first_line(error)
            logger.info("a micro-step of %d trials failed (%s); each goes alone", len(turns), self.parted)
            if is_out_of_memory(error):
                self.token_budget = max(1, sum(turn.micro.rows * turn.micro.width for turn in turns) // 2)
        # Out of the except block first: the traceback keeps the tensors of the failed attempt alive.
        for turn in turns:
            failures += self.micro_step([turn.member])
        return failures

    def _fits_beside(self, first: _Turn, member: Member, micro: MicroBatch) -> bool:
        """Whether a trial's batch can share a pass with the first: both in the bank or both not, and of one class."""
        bank = member.adapter.storage.bank
        if bank is not first.member.adapter.storage.bank:
            return False
        if bank is None:
            return micro.shape_class == first.micro.shape_class
        return bank_class(micro, self._longest_row) == bank_class(first.micro, self._longest_row)

    def _blamed(self, member: Member, error: Exception) -> list[TrialFailure]:
        """The trial failed alone: fewer rows at once if memory was short, otherwise it has failed for good."""
        try:
            if not is_out_of_memory(error):
                raise error
            member.halve_rows(error)
        except Exception as final:  # noqa: BLE001 - the edge
            return [self._fail(member, final)]
        return []

    def _pass(self, turns: Sequence[_Turn]) -> list[TrialFailure]:
        """The losses of these trials, their gradients added; then whoever completed its batch steps."""
        start = time.perf_counter()
        calls = [turn.call for turn in turns if turn.call is not None]
        losses = self._one_by_one(turns, calls) if calls else self._all_at_once(turns)
        seconds = time.perf_counter() - start
        tokens = sum(turn.micro.tokens for turn in turns)
        failures = []
        for turn, loss in zip(turns, losses, strict=True):
            if isinstance(loss, Exception):
                failures += self._blamed(turn.member, loss)
                continue
            try:
                turn.member.add(turn.micro, *loss, seconds * turn.micro.tokens / tokens)
            except Exception as error:  # noqa: BLE001 - the edge
                failures.append(self._fail(turn.member, error))
        if self._bank is not None and len(turns) == len(self.members):
            self._bank.update()  # nobody is left to step: the device goes on while the next batches are made
        return failures

    def _one_by_one(self, turns: Sequence[_Turn], calls: Sequence[Call]) -> Sequence[tuple[float, int] | Exception]:
        """Body forward, each trial's loss and head backward, body backward."""
        with self._segmentation.divided(_segments(turns)), self._around(turns[0].micro.width):
            outputs = self._body.run(calls)
            losses = [self._loss(turn, outputs, index) for index, turn in enumerate(turns)]
            outputs.backward()
        return losses

    def _all_at_once(self, turns: Sequence[_Turn]) -> Sequence[tuple[float, int] | Exception]:
        """The whole model forward and backward for all slots of the bank."""
        assert self._together is not None
        losses = self._together.run([(turn.member.adapter, turn.micro, turn.member.rows_done) for turn in turns])
        return [_finite(turn.member, *loss) for turn, loss in zip(turns, losses, strict=True)]

    def _recorded(self, member: Member, micro: MicroBatch) -> Call:
        view = View(self.model, member.adapter.head)
        return self._body.record(lambda: self.workload.task.loss(view, micro.batch), micro.rows)  # type: ignore[arg-type]

    def _loss(self, turn: _Turn, outputs: Outputs, index: int) -> tuple[float, int] | Exception:
        """Sum of the losses and number of terms of one trial, its gradients added; or what went wrong with it alone."""
        view = View(self.model, turn.member.adapter.head)
        try:
            with self._body.replaying(outputs.part(index)):
                parts = self.workload.task.loss(view, turn.micro.batch)  # type: ignore[arg-type]
            total = float(parts.total.detach())
            turn.member.check_finite({"training loss": total}, turn.member.step + 1)
            torch.autograd.backward(parts.total)
        except Exception as error:  # noqa: BLE001 - the edge
            outputs.forget(index)
            return error
        return total, parts.count

    def _fail(self, member: Member, error: Exception) -> TrialFailure:
        self.evict(member.number)
        reason, message = _reason(error)
        logger.info("trial %d failed at step %d: %s", member.number, member.step, reason)
        return TrialFailure(trial=member.number, step=member.step, reason=reason, message=message)

    def capacity(self, largest: Hyperparameters, *, tokens: int) -> int:
        """How many trials like this one fit into the memory that is free now; tokens: of one micro-batch of theirs."""
        return capacity(
            self.model,
            largest,
            tokens=tokens,
            token_budget=self.token_budget,
            available=available_bytes(self.device),
            targets=self._targets,
        )

    def _check_room(self, spec: TrialSpec) -> None:
        """Refuse before anything is allocated what cannot fit, so that the residents keep their memory."""
        paths = self._paths(spec)
        if self._bank is not None and self._bank.holds(paths, max(map(spec.hyper.rank_of, paths))):
            return
        needed = 16 * adapter_layout(self.layers(spec.hyper.target), spec.hyper.rank_of, self.heads).size
        free = available_bytes(self.device)
        if needed > free:
            raise OutOfMemory(
                f"trial {spec.number} needs {needed / 2**20:,.0f} MiB for rank {spec.hyper.rank} on "
                f"{spec.hyper.target}, {free / 2**20:,.0f} MiB are free"
            )

    def _paths(self, spec: TrialSpec) -> list[str]:
        """Paths of the layers that the trial adapts. Raises TargetError if its rank pattern names others."""
        paths = [layer.path for layer in self.layers(spec.hyper.target)]
        check_pattern(spec.hyper, paths)
        return paths

    def _adapter(self, spec: TrialSpec, storage: Storage | None, *, is_counted: bool) -> Adapter:
        return Adapter(
            spec.hyper,
            self.layers(spec.hyper.target),
            self.heads,
            seed=spec.seed,
            device=self.device,
            initializer_range=float(getattr(self.model.config, "initializer_range", 0.02)),
            storage=storage,
            is_counted=is_counted,
        )

    def _make_bank(self, size: BankSize) -> Bank | None:
        """The bank, or None with a line in the log if this model or task cannot use one or memory is short."""
        if not can_batch(self.heads) or row_losses(self.workload.task) is None:
            logger.info("slots are computed one by one: this head or this task's loss cannot be batched")
            return None
        layers = [layer for target in size.targets for layer in self.layers(target)]
        try:
            return Bank(list(dict.fromkeys(layers)), self.heads, slots=size.slots, rank=size.rank, device=self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.info("slots are computed one by one: there is no memory for a bank of %d", size.slots)
            return None

    def _make_together(self, bank: Bank) -> BankStep:
        losses = row_losses(self.workload.task)
        assert losses is not None
        return BankStep(
            self.model,
            bank,
            self._segmentation,
            losses,
            device=self.device,
            limit=self._longest_row,
            pad_id=self.workload.tokenizer.pad_token_id,
            around=self._around,
            uses_graphs=self._uses_graphs,
        )

    @property
    def _longest_row(self) -> int:
        return self.workload.task.settings.max_length

    @contextmanager
    def _around(self, width: int) -> Iterator[None]:
        """What a training pass over rows of so many tokens runs inside of."""
        with _attention(width, self.device), self._casting():
            yield

    def _casting(self) -> AbstractContextManager[object]:
        # The cache of cast weights must not outlive a CUDA graph's recording, and frozen weights are not cast anyway.
        is_on = self._precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_on, cache_enabled=False)

    def _narrow_last_layer(self) -> nn.Module | None:
        """Leave out what a head that reads the first token only would never see; the module that does so, if any."""
        found = narrow_module(self.model)
        if found is None:
            return None
        path, module = found
        narrow(module)
        for layer in self._packed:
            layer.is_narrow = layer.path.startswith(narrowed_layers(path))
        return module

    def _pack_layers(self) -> list[PackedLinear]:
        """Take over every linear layer of the body, and the lm_head; heads that are trained stay as they are."""
        beyond = tuple(f"{name}." for name in self.heads)
        inside = f"{self.model.base_model_prefix}."
        packed = []
        for layer in linear_layers(self.model):
            if f"{layer.path}.".startswith(beyond):
                continue
            module = self.model.get_submodule(layer.path)
            assert isinstance(module, nn.Linear | Conv1D)
            if layer.path.startswith(inside):
                packed.append(PackedLinear(layer.path, module, self._segmentation, KERNELS[self.kernel]))
            else:
                packed.append(PackedLinear(layer.path, module, None, OUTPUT_KERNELS[self.kernel]))
            module.forward = packed[-1]  # type: ignore[method-assign]
        if not packed:
            raise TargetError(f"{type(self.model).__name__} has no linear layers below its head")
        return packed


def _attention(width: int, device: torch.device) -> AbstractContextManager[None]:
    """The kernel of torch's attention for rows of this many tokens: a function of the trial's own rows alone."""
    if device.type == "cpu" and width <= SHORT_ROWS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _finite(member: Member, total: float, count: int) -> tuple[float, int] | Exception:
    """The loss, or Diverged if it is not a finite number."""
    try:
        member.check_finite({"training loss": total}, member.step + 1)
    except Diverged as error:
        return error
    return total, count


def _segments(turns: Sequence[_Turn]) -> list[Segment]:
    segments, start = [], 0
    for turn in turns:
        stop = start + turn.micro.rows
        segments.append(Segment(turn.member.adapter, start, stop, turn.micro.longest, first=turn.member.rows_done))
        start += turn.micro.rows
    return segments


def _take(specs: Iterator[TrialSpec], number: int) -> Iterator[TrialSpec]:
    for _, spec in zip(range(number), specs, strict=False):
        yield spec


def _reason(error: Exception) -> tuple[StopReason, str]:
    if isinstance(error, Diverged):
        return StopReason.DIVERGED, str(error)
    if isinstance(error, OutOfMemory):
        return StopReason.OOM, str(error)
    return StopReason.ERROR, "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]
