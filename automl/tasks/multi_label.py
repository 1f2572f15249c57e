"""Several classes at once: one text or a pair of texts, and which of the labels apply, any number of them or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from automl.errors import DataError
from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings
from automl.tasks import label_sets
from automl.tasks.base import TARGETS, Batch, BatchTask, Head, LossParts, Prepared, Row, Task
from automl.tasks.collate import columns, pad_inputs
from automl.tasks.fields import Record, column_name, place, shown
from automl.tasks.label_sets import take_names
from automl.tasks.labels import MOST_CLASSES, sort_labels, unseen
from automl.tasks.metrics import mean
from automl.tasks.prepare import Encoded, Recipe, load_rows, prepare
from automl.tasks.read import SPLITS, Split, source_name
from automl.tasks.reading import Reader, Reading, read_examples
from automl.tasks.split import Example, Examples, split_examples, split_notes
from automl.tasks.texts import Texts, TextTokenizer, check_pairs, full_lengths, text_example, text_reader
from automl.tasks.virtual import class_logits

VERSION = 1
"""Version of the way texts become tokens; a change makes old caches unused."""

_NAMED = 5


class MultiLabel(BatchTask):
    """`text` (and `text_pair`) to `labels`, names of which any number may apply.

    Loss: binary cross-entropy, the mean over labels, per row. A label is predicted where its probability is above 0.5.
    Metrics: loss, micro_f1, macro_f1, subset_accuracy.
    """

    _classes = 0
    """Number of labels, once the data is known."""

    def on(self, prepared: Prepared) -> Task:
        task = MultiLabel(self.settings)
        task._classes = len(prepared.labels)
        return task

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples()
        column = column_name(self.settings.data, "labels")
        labels = _check_names(given, source_name(self.settings.data), column)
        examples = split_examples(given, self.settings)
        notes += [*_notes(examples, labels), *split_notes(examples, self.settings)]
        recipe = _recipe(examples, labels, tokenizer, self.settings)
        return prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=notes)

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        return full_lengths(tokenizer, [example.content[:-1] for example in given["train"]])

    def head(self, prepared: Prepared) -> Head:
        return Head("multi-label", prepared.labels)

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        """Texts, and which labels apply: 1 or 0, (N, classes)."""
        wanted = torch.zeros(len(rows), self._classes)
        for number, row in enumerate(rows):
            wanted[number, row["labels"]] = 1.0
        return {**pad_inputs(rows, pad_id), TARGETS: wanted}

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        losses = _losses(_logits(model, batch).float(), batch[TARGETS])
        return LossParts(losses.sum(), len(losses))

    def judge(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        wanted, logits = batch[TARGETS], _logits(model, batch).double()
        return _losses(logits, wanted.double()), wanted > 0.0, logits > 0.0  # a probability above 0.5

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        losses, *marks = columns(judged)
        truth, predicted = ([_places(row) for row in rows] for rows in marks)
        right = [float(a == b) for a, b in zip(truth, predicted, strict=True)]
        by_row = {"loss": losses, "subset_accuracy": right}
        scores = {name: mean(values) for name, values in by_row.items()} | label_sets.f1_scores(truth, predicted)
        name = self.settings.metric
        return scores, Outcomes("values", by_row[name]) if name in by_row else None

    def _examples(self, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        given, notes = read_examples(self.settings, _reader, rows)
        check_pairs(given)
        return given, notes


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return class_logits(model, {name: tensor for name, tensor in batch.items() if name != TARGETS})  # (N, classes)


def _losses(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Loss of every row, (N,)."""
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)


def _places(marks: Sequence[bool]) -> list[int]:
    return [place for place, is_marked in enumerate(marks) if is_marked]


def _reader(settings: TaskSettings, reading: Reading) -> Reader:
    names = take_names(column_name(settings.data, "labels"), str(settings.own.get("separator", "|")))
    return partial(_read, text_reader(settings, reading, "labels"), names)


def _read(texts: Callable[[Record], Texts], names: Callable[[Record], list[str]], record: Record) -> Example:
    return text_example(record, texts(record), (names(record),))


def _check_names(given: Mapping[Split, Sequence[Example]], source: str, column: str) -> tuple[str, ...]:
    """The labels of train, sorted; their places are the ids.

    Raises DataError if there are none or too many, if none is on some rows and not on others, and for a label of
    another split that never occurs in train.
    """
    train = given["train"]
    counts = Counter(name for example in train for name in example.content[-1])
    where = f"{source}, column {column!r}"
    if not counts:
        raise DataError(f"{where}: none of {len(train)} rows has a label; rows with labels are needed")
    if len(counts) > MOST_CLASSES:
        raise DataError(f"{where}: more than {MOST_CLASSES:,} labels; is it the right column, and the right separator?")
    if all(count == len(train) for count in counts.values()):
        listed = ", ".join(map(shown, sorted(counts)[:_NAMED]))
        raise DataError(f"{where}: all {len(train)} rows have the same labels, {listed}; rows that differ are needed")
    labels = sort_labels(counts)
    for split in ("validation", "test"):
        for example in given.get(split, ()):
            for name in (name for name in example.content[-1] if name not in counts):
                raise unseen(example, name, split, labels, column)
    return labels


def _notes(examples: Examples, labels: Sequence[str]) -> Iterator[str]:
    """What the rows lack: several labels at once, labels that vary, and in other splits labels of train."""
    sets = {split: [example.content[-1] for example in examples[split]] for split in SPLITS}
    first = examples["train"][0]
    if all(len(names) < 2 for rows in sets.values() for names in rows):
        yield f"{place(first.file, 0)}: no row has more than one label; classification learns one of several"
    for split, rows in sets.items():
        counts = Counter(name for names in rows for name in names)
        lacking = [name for name in labels if rows and not counts[name]]
        if lacking:
            listed = ", ".join(map(shown, lacking[:_NAMED])) + (", ..." if len(lacking) > _NAMED else "")
            yield f"{split} holds no row of {len(lacking)} of {len(labels)} labels ({listed})"


def _recipe(examples: Examples, labels: Sequence[str], tokenizer: Any, settings: TaskSettings) -> Recipe:
    ids = {name: number for number, name in enumerate(labels)}
    tokenised = TextTokenizer(tokenizer, settings, is_pair=len(examples["train"][0].content) == 3)

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        tokens = tokenised([example.content[:-1] for example in chunk])
        sets = [sorted(ids[name] for name in example.content[-1]) for example in chunk]
        return [Encoded({**each.row, "labels": found}, each.length) for each, found in zip(tokens, sets, strict=True)]

    return Recipe(
        encode=encode,
        version=VERSION,
        columns=dict.fromkeys((*tokenised.columns, "labels"), True),
        labels=tuple(labels),
        baseline={},
    )
