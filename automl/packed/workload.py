"""What all trials of a pack train on and are judged by, and how their rows become padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from automl.tasks.base import IGNORED, TARGETS, Batch, Row, Task
from automl.tasks.batches import evaluation_batches
from automl.training.kept import KeptRows


class MicroBatch(NamedTuple):
    """Some rows of one trial, padded and on the device.

    rows, width: the shape of its rectangle. longest: tokens of its longest row. tokens: without padding. is_full: no
    token is padding; models compute attention without a mask then, so full and other batches do not share a pass.
    examples: rows of the data, of which each may be several texts. apart: tokens of the longest source and of the
    longest target, where a model reads them apart.
    """

    batch: Batch
    rows: int
    width: int
    longest: int
    tokens: int
    is_full: bool
    examples: int
    apart: tuple[int, int] | None = None

    @property
    def shape_class(self) -> tuple[object, ...]:
        """Batches of one class can share a forward pass without changing each other's results."""
        return self.width, self.is_full, self.apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Task and rows of a pack. pad_id: token that fills rows up. tokenizer: for tasks that generate text.

    evaluation_tokens: in one forward pass of an evaluation, padding included. validation_rows, kept: as in `Runtime`.
    heads: modules that its trials train in full, by path, if they are others than the model's own.
    """

    task: Task
    train_rows: Sequence[Row]
    evaluation_rows: Sequence[Row]
    tokenizer: Any
    evaluation_tokens: int = 2048
    validation_rows: Sequence[Row] = ()
    kept: KeptRows | None = None
    heads: Mapping[str, nn.Module] | None = None

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that the task lets through."""
        return self.task.settings.longest_row

    def micro_batch(self, rows: Sequence[Row], device: torch.device) -> MicroBatch:
        """Rows padded to `padded_length` of the longest: a function of these rows alone, so no neighbour matters."""
        pad_id = self.tokenizer.pad_token_id
        batch = self.task.collate(rows, pad_id)
        if self.task.settings.max_target_length:
            return _apart({name: tensor.to(device) for name, tensor in batch.items()})
        mask = batch["attention_mask"]
        texts, longest = mask.shape
        width = padded_length(longest, self.longest_row)
        tokens = int(mask.sum())
        padded = {name: _widen(name, tensor, width, pad_id).to(device) for name, tensor in batch.items()}
        return MicroBatch(padded, texts, width, longest, tokens, tokens == texts * width, len(rows))

    def evaluation_batches(
        self, rows: Sequence[Row], max_tokens: int, device: torch.device, *, task: Task | None = None
    ) -> Iterator[Batch]:
        """These rows in padded batches of at most `max_tokens` tokens, the longest first.

        task: whose rows they are, if not that of the pack.
        """
        pad_id = self.tokenizer.pad_token_id
        whose = task or self.task
        for batch in evaluation_batches(whose, rows, range(len(rows)), pad_id=pad_id, max_tokens=max_tokens):
            yield {name: tensor.to(device) for name, tensor in batch.items()}


def _apart(batch: Batch) -> MicroBatch:
    """Sources and targets, no wider than they are: a layer tells by the width whose tokens it sees."""
    (rows, sources), targets = batch["attention_mask"].shape, batch["labels"].shape[1]
    longest, tokens = max(sources, targets), int(batch["attention_mask"].sum())
    return MicroBatch(batch, rows, longest, longest, tokens, tokens == rows * sources, rows, (sources, targets))


def padded_length(longest: int, limit: int) -> int:
    """Tokens to which rows are padded: a multiple of 4 up to 32, of 8 up to 128, of 32 above; at most `limit`.

    Few different lengths, so that trials can share a forward pass, at the price of a little padding. A row that is
    longer than `limit` keeps its length.
    """
    step = 4 if longest <= 32 else 8 if longest <= 128 else 32
    return max(longest, min(-(-longest // step) * step, limit))


def _widen(name: str, tensor: torch.Tensor, width: int, pad_id: int) -> torch.Tensor:
    """Fill a (rows, tokens) tensor of a batch up to `width` columns; numbers per row or per class stay as they are."""
    if tensor.dim() < 2 or name == TARGETS or tensor.shape[1] == width:
        return tensor
    filler = {"input_ids": pad_id, "labels": IGNORED}.get(name, 0)
    return functional.pad(tensor, (0, width - tensor.shape[1]), value=filler)
