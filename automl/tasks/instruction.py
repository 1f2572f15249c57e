"""Instruction tuning: Alpaca fields, prompt and response, or whole conversations; loss on what the assistant says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from automl.tasks.base import Batch, Head, LossParts, Prepared, Row, Task
from automl.tasks.causal import evaluate_text, loss_parts, make_recipe
from automl.tasks.collate import pad_rows
from automl.tasks.conversation import ReadConversation, choose_format, question
from automl.tasks.fields import Record
from automl.tasks.prepare import load_rows, prepare
from automl.tasks.read import read_splits
from automl.tasks.split import Example, split_examples
from automl.tasks.templates import layout_for

VERSION = 1
"""Of the templates and their masks; a change makes old caches unused."""


class Instruction(Task):
    """Conversations through the model's chat template, else the Alpaca text. The end-of-turn token carries loss too."""

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given = {split: list(self._read(rows)) for split, rows in read_splits(self.settings.data).items()}
        examples = split_examples(given, self.settings)
        recipe = make_recipe(layout_for(tokenizer), tokenizer, max_length=self.settings.max_length, version=VERSION)
        return prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache)

    def head(self, prepared: Prepared) -> Head:
        return Head("causal-lm")

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        return loss_parts(model, batch)

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        return evaluate_text(model, batches, tokenizer, self.settings)

    def _read(self, records: Iterable[Record]) -> Iterator[Example]:
        """Checked examples; content is a tuple of (role, text)."""
        read: ReadConversation | None = None
        for record in records:
            read = read or choose_format(self.settings.format, record, self.settings.data)
            conversation = read(record, self.settings.data)
            yield Example(record.file, record.row, question(conversation), conversation)
