"""Instruction tuning: Alpaca fields, prompt and response, or whole conversations; loss on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings
from automl.tasks.base import Batch, BatchTask, Head, LossParts, Prepared, Row
from automl.tasks.causal import JudgedText, generation_notes, judge_text, loss_parts, make_recipe, text_outcome
from automl.tasks.collate import pad_rows
from automl.tasks.conversation import Extras, Format, choose_format, question, read_conversation, unread
from automl.tasks.fields import Record
from automl.tasks.prepare import Recipe, lengths, load_rows, prepare
from automl.tasks.read import Split
from automl.tasks.reading import Reader, Reading, read_examples
from automl.tasks.split import Example, split_examples, split_notes
from automl.tasks.templates import knows_tools, text_maker

VERSION = 1
"""Version of the templates and their masks; a change makes old caches unused."""


class Instruction(BatchTask):
    """Conversations through the model's chat template, else the Alpaca text. The end-of-turn token carries loss too."""

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples(tokenizer)
        examples = split_examples(given, self.settings)
        notes += split_notes(examples, self.settings)
        recipe = self._recipe(tokenizer)
        made = prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=notes)
        notes = generation_notes(self.rows(made, "validation"), self.settings, tokenizer)
        return replace(made, notes=(*made.notes, *notes))

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(tokenizer, rows)
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
        return make_recipe(text_maker(tokenizer, self.settings), tokenizer, self.settings, version=VERSION)

    def _examples(self, tokenizer: Any, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        template = getattr(tokenizer, "chat_template", None) if self.settings.rules > 1 else None
        extras = Extras(turns=template is not None, tools=template is not None and knows_tools(template))
        return read_examples(self.settings, partial(_reader, extras), rows)


def _reader(extras: Extras, settings: TaskSettings, reading: Reading) -> Reader:
    """Checked examples of one file; content is a tuple of (role, text)."""
    data = settings.data
    shapes: list[Format] = []

    def read(record: Record) -> Example:
        shape = shapes[0] if shapes else choose_format(settings.format, record, data)
        conversation = read_conversation(record, data, shape, extras)
        shapes[:] = [shape]
        reading.unused(unread(record, data, shape, extras))
        asked = question(conversation, record, data, extras)
        return Example(record.file, record.row, asked, conversation)

    return read
