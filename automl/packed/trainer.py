"""Many LoRA trials on one frozen backbone, step by step together. A library of its own: torch in, measurements out.

Each trial follows the curve it would have alone. A round is one optimizer step of every trial in the pack; it consists
of micro-steps, each one forward and one backward pass of the backbone over the next batches of several trials. Losses,
clipping and optimizer steps are each trial's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from automl.errors import Diverged, OutOfMemory, is_out_of_memory
from automl.importance.heldout import HELD_OUT_ROWS
from automl.importance.sensitivity import Sensitivity
from automl.lanes import lane_of, trial_name
from automl.lora import LinearShape, check_pattern
from automl.methods.lora import FREEZE, INIT, PARTS, PLUS
from automl.methods.noise import noisy
from automl.methods.principal import as_plain_lora
from automl.models.calling import first_line
from automl.packed.adapter import COUNTED_STATE, Adapter, constant_bytes, layout_of
from automl.packed.bank import Bank, BankSize, Storage
from automl.packed.bank_step import bank_tokens, row_losses
from automl.packed.body import Call, Outputs
from automl.packed.convert import adapter_config, made_anew_parameters, write_adapter
from automl.packed.install import PackedBackbone
from automl.packed.kernels import choose_kernel
from automl.packed.layout import file_name
from automl.packed.measure import Evaluator
from automl.packed.member import Member
from automl.packed.memory import available_bytes, keep_freed_memory
from automl.packed.rounds import Rounds
from automl.packed.segments import Segment
from automl.packed.workload import MicroBatch, Workload
from automl.training.examine import Evaluated
from automl.training.memory import TOKEN_BUDGET
from automl.training.state import TrainState
from automl.trial import Measurement, StopReason, TrialFailure, TrialSpec, check_finite, failure_of

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

Event = Measurement | TrialFailure

_AS_NEW: Mapping[int, TrainState] = MappingProxyType({})


class _Turn(NamedTuple):
    """One trial's part in a micro-step. call: the body's; None in a bank, where the model is called for all."""

    member: Member
    micro: MicroBatch
    call: Call | None


class PackedTrainer:
    """The frozen backbone with the adapters that are being trained on it.

    beside: workloads of further lanes (`automl.lanes`), whose trials share the model and, where their rows allow it,
        micro-steps with the others.
    model: frozen, in eval mode, on its device, without dropout of its own; `close` gives it back as it was.
    targets: target sets of the user.
    precision: fp32, bf16h (products with frozen weights in bfloat16) or bf16 (the model is held in bfloat16 and
        computes under autocast; adapters, heads and optimizer are float32).
    kernel: a name of KERNELS, None = the fastest that works here.
    token_budget: most tokens of one micro-step; results do not depend on it.
    split: tokens above which the batch of one trial is computed in parts; None: only where memory is short.
    bank: room for slots that are computed together and not one by one; pays where launching kernels is what takes
        time. A trial that does not fit into it is trained beside it.
    recompute: gradient checkpointing of the body's layers.
    graphs: record a bank's micro-steps as CUDA graphs, on a GPU.
    importance: measure on the way how much the loss of each trial depends on each module's update.
    parted: why a micro-step of several trials last failed, so that each went alone; empty if none did.
    crowded: trials that have failed for want of memory while others were in the pack; they may fit beside fewer.
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        *,
        beside: Sequence[Workload] = (),
        targets: Mapping[str, Sequence[str]] | None = None,
        precision: str = "fp32",
        kernel: str | None = None,
        token_budget: int | None = None,
        split: int | None = None,
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
        self.parted = ""
        self._split = split
        self.crowded: set[int] = set()
        if self.device.type == "cpu":
            keep_freed_memory()
        self._importance = importance
        self.backbone = PackedBackbone(
            model, targets=targets or {}, precision=precision, kernel=self.kernel, recompute=recompute
        )
        uses_graphs = graphs and self.device.type == "cuda"
        self.bank_step = self.backbone.install_bank(bank, workload, uses_graphs=uses_graphs) if bank else None
        self._workloads = [workload, *beside]
        self._evaluators = [Evaluator(self.backbone, each) for each in self._workloads]

    # In and out

    def admit(self, spec: TrialSpec, state: TrainState | None = None) -> None:
        """Let a trial join at its next step, as new or where `state` was taken; the others do not notice.

        Raises TargetError, CheckpointError if the state does not fit, OutOfMemory.
        """
        paths = self._paths(spec)
        rank = max(map(spec.hyper.rank_of, paths))
        bank = self._bank
        is_counted = bank is not None
        if state is not None and state.dropout is not None:  # its masks go on as they began
            is_counted = state.dropout.shape == COUNTED_STATE
        self._check_room(spec)
        storage = bank.take(rank) if bank and self._is_banked(spec, paths, rank) and is_counted else None
        try:
            adapter = self._adapter(spec, storage, is_counted=is_counted)
            is_wanted = self._importance and not adapter.parts  # less a part of the weight, it is no product of two
            sensitivity = self._sensitivity(adapter, spec.hyper.target) if is_wanted else None
            self.members[spec.number] = Member(
                spec, adapter, self._workload(spec.number), state, sensitivity=sensitivity, split=self._split
            )
        except BaseException:
            if bank is not None and storage is not None:
                bank.give_back(storage)
            raise

    def evict(self, trial: int) -> None:
        """Free a trial's memory; unknown trials are ignored. What it was is kept with `snapshot` before."""
        member = self.members.pop(trial, None)
        self.crowded.discard(trial)
        if member is not None and (bank := member.adapter.storage.bank) is not None:
            bank.give_back(member.adapter.storage)

    def snapshot(self, trial: int) -> TrainState:
        """Everything a trial needs to continue from here, in this pack or in another."""
        return self.members[trial].snapshot()

    def export(self, trial: int, folder: Path, *, base: str) -> None:
        """Write a trial's adapter and head into `folder`, which exists, as `PeftModel.from_pretrained` reads them.

        base: folder or hub id of the backbone, for adapter_config.json.
        """
        spec, adapter = self.members[trial].spec, self.members[trial].adapter
        config = adapter_config(self.model, spec.hyper, self._paths(spec), list(self._heads(spec)), base=base)
        parameters = {**adapter.parameters(), **adapter.frozen(), **made_anew_parameters(self.model)}
        saved = {file_name(name): tensor for name, tensor in parameters.items()}
        write_adapter(folder, *as_plain_lora(adapter.parts, saved, config))

    def work_on(self, workload: Workload, lane: int = 0) -> None:
        """Let trials of a lane that are admitted from now on have this workload, of the same task."""
        if lane == 0:
            self.workload = workload
        self._workloads[lane] = workload
        self._evaluators[lane] = Evaluator(self.backbone, workload)

    def layers(self, target: str) -> list[LinearShape]:
        """The layers that a target set means in this model."""
        return self.backbone.layers(target)

    def close(self) -> None:
        """Take everything off the model; it is as it was before."""
        self.members.clear()
        self.backbone.close()

    # Training

    def train(
        self,
        specs: Iterable[TrialSpec],
        *,
        slots: int,
        starts: Mapping[int, TrainState] = _AS_NEW,
        before_turn: Callable[[], None] = lambda: None,
    ) -> Iterator[Event]:
        """Train all these trials to their last step, at most `slots` at once; yields measurements and failures.

        A trial stays in the pack until its last measurement has been yielded: `export` and `snapshot` work till then.
        starts: where trials begin that are not new, by number. before_turn: called before each micro-step and
        measurement; what it raises ends the training.
        """
        waiting = iter(specs)
        while True:
            for spec in islice(waiting, max(0, slots - len(self.members))):
                self.admit(spec, starts.get(spec.number))
            if not self.members:
                return
            for event in self.advance(before_turn):
                yield event
                if isinstance(event, Measurement) and self.members[event.trial].is_finished:
                    self.evict(event.trial)

    def advance(self, before_turn: Callable[[], None] = lambda: None) -> list[Event]:
        """Rounds until at least one trial is due or fails; measurements and failures in the order of admission.

        A trial that failed has left the pack. Nothing at once if no trial has steps left. before_turn: as of `train`.
        """
        rounds: Rounds[Member, Event] = Rounds(self.members, micro_step=self.micro_step, measure=self.measured)
        before_turn()
        while rounds.tick():
            before_turn()
        return list(rounds.cohort())

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

    # Measuring

    def evaluate(self, member: Member, max_tokens: int) -> dict[str, float]:
        """All metrics of the task over the evaluation rows of the trial's step, no dropout; none at a checkpoint."""
        evaluator = self._evaluator(member.number)
        return evaluator.metrics(member.adapter, max_tokens, rows=member.spec.rows_at(member.step))

    def baseline(self, lane: int = 0) -> dict[str, float]:
        """All metrics of the bare backbone."""
        return self._evaluators[lane].metrics(None, self._workloads[lane].evaluation_tokens)

    def measured(self, members: Sequence[Member]) -> list[Event]:
        """The trials' measurements at their current steps; who has none has failed and left the pack."""
        found: dict[int, Evaluated] = {}
        for lane, evaluator in enumerate(self._evaluators):
            found |= evaluator.together([member for member in members if lane_of(member.number) == lane])
        return [self._measured(member, found.get(member.number)) for member in members]

    def _measured(self, member: Member, found: Evaluated | None) -> Event:
        try:
            return self._evaluator(member.number).measurement(member, found)
        except Exception as error:  # noqa: BLE001 - the edge: what a task or model raises fails one trial
            return self._fail(member, error)

    def go_back(self, trial: int, state: TrainState) -> None:
        """Let a trial that trains no further stand where this state was taken."""
        self.members[trial].go_back(state)

    def measure_last(self, trial: int) -> Measurement:
        """Measure a trial that trains no further where it stands, on all rows. Raises Diverged and what a task does."""
        return self._evaluator(trial).measurement(self.members[trial])

    def fail(self, trial: int, error: Exception) -> TrialFailure:
        """Take a trial that cannot go on out of the pack."""
        return self._fail(self.members[trial], error)

    def measure_held_out(self, measurement: Measurement, rows: int = HELD_OUT_ROWS) -> Measurement:
        """The measurement with what removing each module's update would do to the loss on the first evaluation rows.

        One forward and one backward pass over so many rows, without dropout, for this trial alone, if there is room.
        No trial is affected. Between two steps of the trial only.
        """
        return self._evaluator(measurement.trial).held_out(self.members[measurement.trial], measurement, rows)

    def examine(self, measurement: Measurement) -> Measurement:
        """The last measurement of a trial with what its examination finds. No trial is affected."""
        return self._evaluator(measurement.trial).examine(self.members[measurement.trial], measurement)

    # One micro-step

    def micro_step(self, waiting: Sequence[Member]) -> list[TrialFailure]:
        """Forward and backward pass for the first waiting trial and all that fit beside it; returns who failed."""
        failures: list[TrialFailure] = []
        turns: list[_Turn] = []
        for member in waiting:
            try:
                micro = member.upcoming(CPU if member.adapter.storage.bank else self.device)
                if turns and not self._fits_beside(turns, member, micro):
                    continue
                call = None if member.adapter.storage.bank else self._recorded(member, micro)
                if turns and call is not None and not call.is_like(turns[0].call):
                    continue
                turns.append(_Turn(member, micro, call))
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

    def _fits_beside(self, turns: Sequence[_Turn], member: Member, micro: MicroBatch) -> bool:
        """Whether a trial's batch can share a pass with these: all in the bank or none, alike, and not too many."""
        bank = member.adapter.storage.bank
        if bank is not turns[0].member.adapter.storage.bank:
            return False
        micros = [*(turn.micro for turn in turns), micro]
        if bank is not None:
            return bank_tokens(micros, self.workload.longest_row, self.token_budget) > 0
        tokens = sum(each.rows * each.width for each in micros)
        return micro.shape_class == turns[0].micro.shape_class and tokens <= self.token_budget

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
        backbone = self.backbone
        with backbone.segmentation.divided(segments := _segments(turns)), backbone.around(turns[0].micro.width):
            noise = zip(turns, segments, strict=True)
            parts = [part for turn, where in noise for part in turn.member.noisy_rows(turn.micro, where.start)]
            with noisy(self.model, parts):
                outputs = backbone.body.run(calls)
            with backbone.around_losses(len(turns)):
                losses = [self._loss(turn, outputs, index) for index, turn in enumerate(turns)]
            outputs.backward()
        return losses

    def _all_at_once(self, turns: Sequence[_Turn]) -> Sequence[tuple[float, int] | Exception]:
        """The whole model forward and backward for all slots of the bank."""
        assert self.bank_step is not None
        losses = self.bank_step.run([(turn.member.adapter, turn.micro, turn.member.rows_done) for turn in turns])
        return [_finite(turn.member, *loss) for turn, loss in zip(turns, losses, strict=True)]

    def _recorded(self, member: Member, micro: MicroBatch) -> Call:
        view = self.backbone.view(member.adapter)
        loss = member.task.loss
        return self.backbone.body.record(lambda: loss(view, micro.batch))  # type: ignore[arg-type]

    def _loss(self, turn: _Turn, outputs: Outputs, index: int) -> tuple[float, int] | Exception:
        """Sum of the losses and number of terms of one trial, its gradients added; or what went wrong with it alone."""
        view = self.backbone.view(turn.member.adapter)
        try:
            with self.backbone.body.replaying(outputs.part(index)):
                parts = turn.member.task.loss(view, turn.micro.batch)  # type: ignore[arg-type]
            total = float(parts.total.detach())
            check_finite({"training loss": total}, turn.member.step + 1)
            torch.autograd.backward(parts.total)
        except Exception as error:  # noqa: BLE001 - the edge
            outputs.forget(index)
            return error
        return total, parts.count

    def _fail(self, member: Member, error: Exception) -> TrialFailure:
        self.evict(member.number)
        failure = failure_of(error, trial=member.number, step=member.step, tokens=member.tokens)
        if failure.reason is StopReason.OOM and self.members:
            self.crowded.add(member.number)
        logger.info("%s failed at step %d: %s", trial_name(member.number), member.step, failure.reason)
        return failure

    # One adapter

    def _workload(self, trial: int) -> Workload:
        return self._workloads[lane_of(trial)]

    def _evaluator(self, trial: int) -> Evaluator:
        return self._evaluators[lane_of(trial)]

    def _heads(self, spec: TrialSpec) -> Mapping[str, nn.Module]:
        own = self._workload(spec.number).heads
        return self.backbone.heads if own is None else own

    @property
    def _bank(self) -> Bank | None:
        return self.bank_step.bank if self.bank_step is not None else None

    def _is_banked(self, spec: TrialSpec, paths: Sequence[str], rank: int) -> bool:
        """Whether a trial has room in the bank, whose steps are alike.

        No noise on embeddings, A and B trained at one rate, nothing of the weights taken away, the task's usual loss.
        """
        hyper, workload = spec.hyper, self._workload(spec.number)
        if workload.task.for_trial(hyper) is not workload.task or not self._is_like_first(workload):
            return False
        is_alike = not hyper.neftune_alpha and PLUS.of(hyper) == PLUS.default
        is_alike = is_alike and not FREEZE.of(hyper) and INIT.of(hyper) not in PARTS
        return is_alike and self._bank is not None and self._bank.holds(paths, rank)

    def _is_like_first(self, workload: Workload) -> bool:
        """Whether the bank, which was made for the first lane, computes the trials of this one too."""
        first = self.workload
        is_same = workload.heads is None and workload.longest_row == first.longest_row
        return is_same and row_losses(workload.task) is row_losses(first.task)

    def _check_room(self, spec: TrialSpec) -> None:
        """Refuse before anything is allocated what cannot fit, so that the residents keep their memory."""
        paths = self._paths(spec)
        if self._is_banked(spec, paths, max(map(spec.hyper.rank_of, paths))):
            return
        layers = self.layers(spec.hyper.target)
        needed = 16 * layout_of(spec.hyper, layers, self._heads(spec)).size + constant_bytes(spec.hyper, layers)
        free = available_bytes(self.device)
        if needed > free:
            raise OutOfMemory(
                f"{trial_name(spec.number)} needs {needed / 2**20:,.0f} MiB for rank {spec.hyper.rank} on "
                f"{spec.hyper.target}, {free / 2**20:,.0f} MiB are free"
            )

    def _paths(self, spec: TrialSpec) -> list[str]:
        """Paths of the layers that the trial adapts. Raises TargetError if its rank pattern names others."""
        paths = [layer.path for layer in self.layers(spec.hyper.target)]
        check_pattern(spec.hyper, paths)
        return paths

    def _adapter(self, spec: TrialSpec, storage: Storage | None, *, is_counted: bool) -> Adapter:
        layers = self.layers(spec.hyper.target)
        return Adapter(
            spec.hyper,
            layers,
            self._heads(spec),
            seed=spec.seed,
            device=self.device,
            initializer_range=float(getattr(self.model.config, "initializer_range", 0.02)),
            storage=storage,
            is_counted=is_counted,
            parts=self.backbone.parts(spec.hyper, layers),
            starts=self.backbone.starts(spec.hyper, layers),
        )

    def _sensitivity(self, adapter: Adapter, target: str) -> Sensitivity:
        """Sensitivities of which nothing is known yet."""
        layers = self.layers(target)
        rank = max(map(adapter.hyper.rank_of, adapter.low_rank))
        return Sensitivity(layers, rank, self.backbone.norms(layers), aside=self.device.type != "cpu")


def _finite(member: Member, total: float, count: int) -> tuple[float, int] | Exception:
    """The loss, or Diverged if it is not a finite number."""
    try:
        check_finite({"training loss": total}, member.step + 1)
    except Diverged as error:
        return error
    return total, count


def _segments(turns: Sequence[_Turn]) -> list[Segment]:
    segments, start = [], 0
    for turn in turns:
        stop = start + turn.micro.rows
        first = turn.member.rows_done * turn.micro.rows // turn.micro.examples
        segments.append(Segment(turn.member.adapter, start, stop, turn.micro.longest, first=first))
        start += turn.micro.rows
    return segments
