"""Completion: a response after a prompt, or plain text with loss on every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from automl.errors import DataError
from automl.outcomes import Outcomes
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks.base import Batch, BatchTask, Head, LossParts, Prepared, Row
from automl.tasks.causal import (
    JudgedText,
    MaskedText,
    TextPart,
    generation_notes,
    judge_text,
    loss_parts,
    make_recipe,
    text_outcome,
)
from automl.tasks.collate import pad_rows
from automl.tasks.fields import Record, column_name, missing_column, take_text
from automl.tasks.passages import is_passage
from automl.tasks.prepare import Recipe, lengths, load_rows, prepare
from automl.tasks.read import Split, source_name
from automl.tasks.reading import Reader, Reading, read_examples
from automl.tasks.split import Example, split_examples, split_notes
from automl.tasks.text_metrics import generating

VERSION = 1
"""Version of the way examples become tokens; a change makes old caches unused."""


class Completion(BatchTask):
    """`prompt` to `response` (loss on the response), or `text` alone (loss on every token).

    The prompt ends with a line break unless it ends with white space already; end-of-text follows the response.
    """

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples()
        self._check_plain(given["train"])
        examples = split_examples(given, self.settings)
        notes += split_notes(examples, self.settings)
        recipe = self._recipe(tokenizer)
        made = prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=notes)
        notes = generation_notes(self.rows(made, "validation"), self.settings, tokenizer)
        return replace(made, notes=(*made.notes, *notes))

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        return lengths(self._recipe(tokenizer).encode(given["train"]))

    def head(self, prepared: Prepared) -> Head:
        return Head("causal-lm")

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        return loss_parts(model, batch)

    def judge(self, model: torch.nn.Module, batch: Batch) -> JudgedText:
        return judge_text(model, batch, self.settings)

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        return text_outcome(judged, model, tokenizer, self.settings)

    def _recipe(self, tokenizer: Any) -> Recipe:
        as_text = partial(_as_text, long_texts=self.settings.long_texts)
        return make_recipe(as_text, tokenizer, self.settings, version=VERSION)

    def _examples(self, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        return read_examples(self.settings, _reader, rows, has_classes=False)

    def _check_plain(self, rows: Sequence[Example]) -> None:
        """Raise DataError for what does not go with rows that are plain texts, or that are not."""
        first = {example.part: example for example in reversed(rows)}
        plain = [example for example in first.values() if _is_plain(example)]
        if (generated := generating(self.settings)) and plain:
            message = f"metric {generated[0]!r} compares responses, but the data is plain text"
            source = source_name(self.settings.data.places[plain[0].part])
            raise DataError(f"{source}: {message}; use loss, or prompt and response columns")
        source = source_name(self.settings.data)
        if self.settings.long_texts == "chunk" and not plain:
            message = "long_texts: chunk is for plain texts, but the data is prompts and responses"
            raise DataError(f"{source}: {message}; leave it out")


def _reader(settings: TaskSettings, reading: Reading) -> Reader:
    """Checked examples of one file, as its first record has it: content is (text,) or (prompt, response).

    A passage of a text that goes on is (text, None).
    """
    data = settings.data
    columns: tuple[str, ...] = ()

    def read(record: Record) -> Example:
        nonlocal columns
        names = columns or _columns(record, data)
        content = tuple(take_text(record, column) for column in names)
        columns = names
        if record.row:  # otherwise the file is one example, and its columns are ours
            reading.unused((name, value) for name, value in record.values.items() if name not in names)
        return Example(record.file, record.row, content[0], (*content, None) if is_passage(record) else content)

    return read


def _columns(record: Record, data: DataSettings) -> tuple[str, ...]:
    """The columns that are read; other libraries call the response of a prompt its completion."""
    prompt, response, text = (column_name(data, name) for name in ("prompt", "response", "text"))
    if "response" not in data.columns and response not in record.values and "completion" in record.values:
        response = "completion"
    if prompt in record.values and response in record.values:
        return prompt, response
    if text in record.values:
        return (text,)
    wanted = response if prompt in record.values else prompt
    raise missing_column(record.file, record.row, wanted, record.values)


def _is_plain(example: Example) -> bool:
    return example.content[1:] in ((), (None,))


def _as_text(example: Example, *, long_texts: Literal["", "cut", "chunk"]) -> MaskedText:
    if _is_plain(example):
        is_whole = len(example.content) == 1
        is_chunked = long_texts == "chunk" or (not long_texts and not is_whole)
        part = TextPart(example.content[0], has_loss=True)
        return MaskedText((part,), is_closed=is_whole, is_chunked=is_chunked)
    prompt, response = example.content
    start = prompt if prompt[-1].isspace() else prompt + "\n"
    return MaskedText((TextPart(start, has_loss=False), TextPart(response, has_loss=True)), is_closed=True)
