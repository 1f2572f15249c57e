"""Evaluation of several trials on one batch of rows before the next: the rows are the same for all of them.

The body's part of what a task asks of the model is done for all trials in one pass, as in a micro-step; what is on top
of it, and what the task makes of that, for one trial after the other. Nothing of it is random.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from automl.packed.adapter import Adapter
from automl.packed.install import PackedBackbone
from automl.packed.segments import Pack, Segment
from automl.tasks.base import Batch, BatchTask, Task
from automl.watchdog import beat


def is_judged_by_batch(task: Task) -> bool:
    """Whether the task is evaluated by what it judges of each batch, also if a subclass has changed a part of it."""
    own = type(task)
    is_usual = own.evaluate is BatchTask.evaluate and own.evaluate_by_row is BatchTask.evaluate_by_row
    return isinstance(task, BatchTask) and is_usual


@contextmanager
def measuring(backbone: PackedBackbone, adapter: Adapter | None) -> Iterator[None]:
    """All rows belong to this adapter inside the block, without dropout or gradients; None is the bare backbone."""
    if adapter is not None:
        adapter.settle()
    with torch.no_grad(), backbone.segmentation.alone(adapter), backbone.casting():
        yield


def judge_together(
    backbone: PackedBackbone, task: BatchTask, batches: Iterable[Batch], adapters: Sequence[Adapter], max_tokens: int
) -> list[list[Any]]:
    """What the task judges of every batch, for each of these adapters, all of one bank or of none.

    max_tokens: of one pass, padding included; a batch that has more is one all the same.
    """
    judged: list[list[Any]] = [[] for _ in adapters]
    for batch in batches:
        at_once = max(1, max_tokens // _tokens(batch))
        for start in range(0, len(adapters), at_once):
            beat()
            some = adapters[start : start + at_once]
            for each, found in zip(_judged(backbone, task, batch, some), judged[start:], strict=False):
                found.append(each)
    return judged


def _judged(backbone: PackedBackbone, task: BatchTask, batch: Batch, adapters: Sequence[Adapter]) -> Iterator[Any]:
    views: list[Any] = [backbone.view(adapter) for adapter in adapters]
    if len(adapters) == 1 and adapters[0].storage.bank is None:
        with measuring(backbone, adapters[0]):
            yield task.judge(views[0], batch)
        return
    for adapter in adapters:
        adapter.settle()
    with torch.no_grad(), backbone.casting():
        call = backbone.body.record(lambda: task.judge(views[0], batch))
        with _divided(backbone, adapters, call.rows):
            outputs = backbone.body.run([call] * len(adapters))
    for number, adapter in enumerate(adapters):
        with measuring(backbone, adapter), backbone.body.replaying(outputs.part(number)):
            yield task.judge(views[number], batch)


def _divided(backbone: PackedBackbone, adapters: Sequence[Adapter], rows: int) -> AbstractContextManager[None]:
    """Give each of these adapters `rows` rows inside the block."""
    if (bank := adapters[0].storage.bank) is not None:
        places = [(adapter.storage.row, adapter.hyper.scaling) for adapter in adapters]
        return backbone.segmentation.packed(Pack.without_dropout(bank, places, rows_each=rows))
    segments = [
        Segment(adapter, number * rows, (number + 1) * rows, 0, is_training=False)
        for number, adapter in enumerate(adapters)
    ]
    return backbone.segmentation.divided(segments)


def _tokens(batch: Batch) -> int:
    """Tokens of a batch, padding included; of sources and targets the longer ones."""
    (rows, width), labels = batch["input_ids"].shape, batch.get("labels")
    return rows * max(width, labels.shape[1] if labels is not None and labels.dim() > 1 else 0)
