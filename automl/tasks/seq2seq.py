"""Sequence to sequence: a source text is read by an encoder, and a decoder writes the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from automl.errors import DataError
from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings
from automl.tasks.base import Batch, BatchTask, Head, LossParts, Prepared, Row
from automl.tasks.causal import JudgedText, generation_notes, judge_text, text_outcome
from automl.tasks.collate import pad_rows
from automl.tasks.encoder_decoder import ENCODER_DECODER, target_losses
from automl.tasks.fields import Record, column_name, place, shown, take_text
from automl.tasks.prepare import Encoded, Recipe, lengths, load_rows, prepare
from automl.tasks.read import Split, source_name
from automl.tasks.reading import Reader, Reading, read_examples
from automl.tasks.split import Example, split_examples, split_notes
from automl.tasks.texts import TextTokenizer, Tokens

VERSION = 1
"""Version of the way examples become tokens; a change makes old caches unused."""


class Seq2Seq(BatchTask):
    """`source` to `target`, each as the tokenizer writes a text of its kind; loss on all tokens of the target."""

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples()
        examples = split_examples(given, self.settings)
        notes += split_notes(examples, self.settings)
        made = prepare(
            examples, self.settings, recipe(tokenizer, self.settings), tokenizer=tokenizer, cache=cache, notes=notes
        )
        notes = generation_notes(self.rows(made, "validation"), self.settings, tokenizer)
        return replace(made, notes=(*made.notes, *notes))

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        return lengths(recipe(tokenizer, self.settings).encode(given["train"]))

    def target_lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        return [row.target for row in recipe(tokenizer, self.settings).encode(given["train"]) if row.error is None]

    def row_tokens(self, row: Row) -> int:
        return max(len(row["input_ids"]), len(row["labels"]))

    def head(self, prepared: Prepared) -> Head:
        return Head("seq2seq-lm")

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        losses = target_losses(model, batch)
        return LossParts(losses.sum(), losses.numel())

    def judge(self, model: torch.nn.Module, batch: Batch) -> JudgedText:
        return judge_text(model, batch, self.settings, ENCODER_DECODER)

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        return text_outcome(judged, model, tokenizer, self.settings, ENCODER_DECODER)

    def _examples(self, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        return read_examples(self.settings, _reader, rows)


def _reader(settings: TaskSettings, reading: Reading) -> Reader:
    """Checked examples: content is (source, target)."""
    columns = [column_name(settings.data, name) for name in ("source", "target")]
    if columns[0] == columns[1]:
        what = f"source and target are both column {columns[0]!r}; nothing but copying could be learnt"
        raise DataError(f"{source_name(settings.data)}: {what}")

    def read(record: Record) -> Example:
        source, target = (take_text(record, column) for column in columns)
        if record.row:  # otherwise the file is one example, and its columns are ours
            reading.unused((name, value) for name, value in record.values.items() if name not in columns)
        return Example(record.file, record.row, source, (source, target))

    return read


def recipe(tokenizer: Any, settings: TaskSettings) -> Recipe:
    """The recipe of rows `input_ids` and `labels`, of the source and the target.

    Sources are cut before the tokens that the tokenizer puts at a text's end, targets at the end. Rows that judge have
    a `reference` too: all tokens of the target if it is cut, else none.
    """
    read_sources = TextTokenizer(tokenizer, settings, is_pair=False)

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        sources = read_sources([(example.content[0],) for example in chunk])
        targets = target_tokens(tokenizer, [example.content[1] for example in chunk])
        return [_encoded(*row, settings.max_target_length) for row in zip(chunk, sources, targets, strict=True)]

    return Recipe(
        encode=encode,
        version=VERSION,
        columns={"input_ids": True, "labels": True},
        baseline={},
        judging=("reference",),
    )


def target_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of target texts, which may be written otherwise than sources, with the one that ends a text."""
    if not texts:
        return []
    # verbose: no warning about texts longer than the model's limit, which are cut later
    found: list[list[int]] = tokenizer(text_target=list(texts), verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    # a language may be named behind the end (mBART)
    return [ids if end is None or end in ids[-2:] else [*ids, end] for ids in found]


def _encoded(example: Example, source: Tokens, target: list[int], most: int) -> Encoded:
    is_cut = len(target) > most
    row = {**source.row, "labels": target[:most], "reference": target if is_cut else []}
    error = None if target else _untokenised(example)
    return Encoded(None if error else row, source.length, is_cut, error=error, target=len(target))


def _untokenised(example: Example) -> DataError:
    what = f"the tokenizer makes no token of target {shown(example.content[1])}"
    return DataError(f"{place(example.file, example.row)}: {what}")
