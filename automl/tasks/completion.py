"""Completion: a response after a prompt, or plain text with loss on every token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from automl.errors import DataError
from automl.metric import GENERATION_METRICS
from automl.tasks.base import Batch, Head, LossParts, Prepared, Row, Task
from automl.tasks.causal import Layout, Segment, evaluate_text, loss_parts, make_recipe
from automl.tasks.collate import pad_rows
from automl.tasks.fields import Record, column_name, missing_column, take_text
from automl.tasks.prepare import load_rows, prepare
from automl.tasks.read import read_splits, source_name
from automl.tasks.split import Example, split_examples

VERSION = 1
"""Of the way examples become tokens; a change makes old caches unused."""


class Completion(Task):
    """`prompt` to `response` (loss on the response), or `text` alone (loss on every token).

    The prompt ends with a line break unless it ends with white space already; end-of-text follows the response.
    """

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given = {split: list(self._read(rows)) for split, rows in read_splits(self.settings.data).items()}
        self._check_metric(given["train"])
        examples = split_examples(given, self.settings)
        recipe = make_recipe(_lay_out, tokenizer, max_length=self.settings.max_length, version=VERSION)
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
        """Checked examples; content is (text,) or (prompt, response), as the first record has it."""
        data = self.settings.data
        names = {name: column_name(data, name) for name in ("prompt", "response", "text")}
        columns: tuple[str, ...] = ()
        for record in records:
            columns = columns or _columns(record, names)
            content = tuple(take_text(record, column) for column in columns)
            yield Example(record.file, record.row, content[0], content)

    def _check_metric(self, rows: Sequence[Example]) -> None:
        if self.settings.metric in GENERATION_METRICS and len(rows[0].content) == 1:
            message = f"metric {self.settings.metric!r} compares responses, but the data is plain text"
            raise DataError(f"{source_name(self.settings.data)}: {message}; use loss, or prompt and response columns")


def _columns(record: Record, names: dict[str, str]) -> tuple[str, ...]:
    if names["prompt"] in record.values and names["response"] in record.values:
        return names["prompt"], names["response"]
    if names["text"] in record.values:
        return (names["text"],)
    wanted = names["response"] if names["prompt"] in record.values else names["prompt"]
    raise missing_column(record.file, record.row, wanted, record.values)


def _lay_out(example: Example) -> Layout:
    if len(example.content) == 1:
        return Layout((Segment(example.content[0], has_loss=True),), is_closed=True)
    prompt, response = example.content
    start = prompt if prompt[-1].isspace() else prompt + "\n"
    return Layout((Segment(start, has_loss=False), Segment(response, has_loss=True)), is_closed=True)
