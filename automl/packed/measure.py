"""How trials of a pack are measured: the task's metrics, and what held-out rows say of each module's update."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from automl.importance.heldout import removal_effects
from automl.lanes import trial_name
from automl.methods.base import LowRank
from automl.models.calling import first_line
from automl.packed.adapter import Adapter
from automl.packed.install import PackedBackbone
from automl.packed.member import Member, factors
from automl.packed.together import is_judged_by_batch, judge_together, measuring
from automl.packed.workload import Workload
from automl.tasks.base import Batch, BatchTask, Row, Task
from automl.tasks.batches import some_of
from automl.training.examine import Evaluated, Subject, examined, own_outcomes
from automl.training.held_out import measured_on
from automl.training.kept import KeptRows
from automl.training.memory import halving
from automl.trial import Measurement, check_finite
from automl.watchdog import beat

logger = logging.getLogger(__name__)


class Evaluator:
    """Measures trials without dropout, many of them on one batch of rows if they are due together.

    No trial is affected.
    """

    def __init__(self, backbone: PackedBackbone, workload: Workload) -> None:
        self._backbone = backbone
        self._workload = workload

    def metrics(self, adapter: Adapter | None, max_tokens: int, *, rows: int | None = None) -> dict[str, float]:
        """All metrics of the task. adapter: None is the bare backbone. max_tokens: in one forward pass.

        rows: how many evaluation rows are used; None = all, and with 0 there are no metrics.
        """
        return self._measured(adapter, max_tokens, rows)[0]

    def together(self, members: Sequence[Member]) -> dict[int, Evaluated]:
        """What trials that are due together are measured by, by number; who is left out is to be measured alone.

        A pass for several has no more tokens than one for a trial alone may have, so it needs no more memory.
        """
        groups: dict[object, list[Member]] = {}
        for member in members:
            alike = self._rows(member), member.is_finished, member.evaluation_tokens, member.adapter.storage.bank
            groups.setdefault(alike, []).append(member)
        found: dict[int, Evaluated] = {}
        for group in groups.values():
            found |= self._together(group)
        return found

    def _together(self, members: Sequence[Member]) -> dict[int, Evaluated]:
        """What these trials, of which the same is wanted, are measured by; nothing if that does not work out."""
        first, task = members[0], self._task(members[0])
        rows = some_of(self._workload.evaluation_rows, self._rows(first))
        if len(members) == 1 or not rows or not isinstance(task, BatchTask) or not is_judged_by_batch(task):
            return {}
        try:
            batches = self._workload.evaluation_batches(rows, first.evaluation_tokens, self._backbone.device, task=task)
            adapters = [member.adapter for member in members]
            judged = judge_together(self._backbone, task, batches, adapters, first.evaluation_tokens)
        except Exception as error:  # noqa: BLE001 - the edge: whose fault it is turns out when each goes alone
            logger.info("%d trials cannot be measured together (%s); each goes alone", len(members), first_line(error))
            return {}
        found: dict[int, Evaluated] = {}
        for member, own in zip(members, judged, strict=True):
            with suppress(Exception):  # alone it says what is wrong with it; the others keep what they have
                found[member.number] = self._scored(task, own, member.adapter)
        return found

    def measurement(self, member: Member, found: Evaluated | None = None) -> Measurement:
        """The trial's measurement at its current step. Raises Diverged, OutOfMemory and what the task raises.

        found: what it is measured by, if that is known.
        """
        found = found or self._alone(member)
        check_finite(found[0], member.step)
        return Measurement(
            trial=member.number,
            step=member.step,
            metrics={**found[0], **self._kept(member)},
            seconds=member.seconds,
            tokens=member.tokens,
            importances=member.importances(),
            examined=own_outcomes(member.spec.examination, *found) if member.is_finished else (),
            training_loss=member.training_loss(),
        )

    def _alone(self, member: Member) -> Evaluated:
        found, member.evaluation_tokens = halving(
            member.evaluation_tokens,
            lambda tokens: self._measured(member.adapter, tokens, self._rows(member), task=self._task(member)),
            what=f"the evaluation of {trial_name(member.number)}",
        )
        return found

    def _rows(self, member: Member) -> int | None:
        """Evaluation rows of the trial's step; None = all there are."""
        return None if member.is_finished else member.spec.rows_at(member.step)

    def _task(self, member: Member) -> Task:
        return self._workload.task if member.is_finished else self._workload.task.briefly()

    def _kept(self, member: Member) -> dict[str, float]:
        """What is known at the last step of what the trial has forgotten."""
        kept = self._workload.kept
        if kept is None or not member.is_finished:
            return {}
        untuned = kept.untuned(lambda: self._on(kept, None, member)[0])
        return kept.told(self._on(kept, member.adapter, member)[0], untuned, trial=member.number)

    def _on(self, kept: KeptRows, adapter: Adapter | None, member: Member) -> Evaluated:
        """Metrics of the trial, or of the bare backbone, on these rows; in memory that suffices for the trial."""
        found, member.evaluation_tokens = halving(
            member.evaluation_tokens,
            lambda tokens: self._evaluated(adapter, kept.rows, tokens, task=kept.task),
            what=f"the evaluation of {trial_name(member.number)} on keep",
        )
        return found

    def examine(self, member: Member, measurement: Measurement) -> Measurement:
        """The last measurement with what the trial's examination finds; the trial is as before."""
        return examined(measurement, member.spec.examination, lambda: self._subject(member))

    def _measured(
        self, adapter: Adapter | None, max_tokens: int, rows: int | None, *, task: Task | None = None
    ) -> Evaluated:
        if rows == 0:
            return {}, None
        some = some_of(self._workload.evaluation_rows, rows)
        return self._evaluated(adapter, some, max_tokens, task=task)

    def _evaluated(
        self, adapter: Adapter | None, rows: Sequence[Row], max_tokens: int, *, task: Task | None = None
    ) -> Evaluated:
        backbone, workload, task = self._backbone, self._workload, task or self._workload.task
        batches = workload.evaluation_batches(rows, max_tokens, backbone.device, task=task)
        if adapter is not None and adapter.storage.bank and isinstance(task, BatchTask) and is_judged_by_batch(task):
            # As among others: what a trial is measured by does not depend on who else is due.
            judged = judge_together(backbone, task, batches, [adapter], max_tokens)
            return self._scored(task, judged[0], adapter)
        view = backbone.view(adapter, workload.heads)
        with measuring(backbone, adapter):
            return task.evaluate_by_row(view, batches, workload.tokenizer)  # type: ignore[arg-type]

    def _scored(self, task: BatchTask, judged: Sequence[Any], adapter: Adapter) -> Evaluated:
        beat()  # metrics of the user's own may take long
        with measuring(self._backbone, adapter):
            view = self._backbone.view(adapter)
            return task.scores(judged, view, self._workload.tokenizer)  # type: ignore[arg-type]

    def _subject(self, member: Member) -> Subject:
        adapter, backbone, workload = member.adapter, self._backbone, self._workload
        adapter.settle()
        view = backbone.view(adapter)
        updates = {} if adapter.parts else adapter.low_rank  # less a part of the weight, it is no product of two

        def forward(batch: Batch) -> None:
            with measuring(backbone, adapter):
                workload.task.loss(view, batch)  # type: ignore[arg-type]

        def batch(rows: Sequence[Row]) -> Batch:
            padded = workload.task.collate(rows, workload.tokenizer.pad_token_id)
            return {name: tensor.to(backbone.device) for name, tensor in padded.items()}

        return Subject(
            updates=[LowRank(path, each.a, each.b, adapter.hyper.scaling) for path, each in updates.items()],
            modules=[backbone.model.get_submodule(path) for path in updates],
            train_rows=workload.train_rows,
            rows=workload.evaluation_rows,
            validation_rows=workload.validation_rows,
            batch=batch,
            forward=forward,
            evaluate=lambda rows: self._evaluated(adapter, rows, member.evaluation_tokens),
        )

    def held_out(self, member: Member, measurement: Measurement, rows: int) -> Measurement:
        """The measurement with what removing each module's update would do to the loss on the first evaluation rows.

        One forward and one backward pass over so many rows. Between two steps of the trial only.
        """
        adapter = member.adapter
        return measured_on(
            self._workload.evaluation_rows[:rows],
            measurement,
            list(adapter.low_rank),
            lambda batch: self._removal_effects(adapter, batch),
        )

    def _removal_effects(self, adapter: Adapter, rows: Sequence[Row]) -> list[float]:
        """Effects of each removal on the loss of one batch. The adapter's gradient is zero before and after."""
        micro = self._workload.micro_batch(rows, self._backbone.device)
        view = self._backbone.view(adapter)
        try:
            with self._backbone.segmentation.alone(adapter), self._backbone.around(micro.width):
                parts = self._workload.task.loss(view, micro.batch)  # type: ignore[arg-type]
                torch.autograd.backward(parts.total / max(1, parts.count))
            return removal_effects(factors(adapter))
        finally:
            adapter.gradient.zero_()
