"""Text classification: one text or a pair of texts, one class out of two to a thousand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from automl.metric import METRICS
from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings
from automl.tasks import metrics
from automl.tasks.base import Batch, Head, LossParts, Prepared, Row, Task
from automl.tasks.collate import pad_rows
from automl.tasks.fields import Record, column_name, fault, take_label, take_text
from automl.tasks.labels import check_classes, limit_classes, rare_classes
from automl.tasks.own_metrics import own_class_scores
from automl.tasks.prepare import Encoded, Recipe, load_rows, prepare
from automl.tasks.read import Split, read_splits, source_name
from automl.tasks.reading import Reading
from automl.tasks.split import Example, Examples, split_examples, split_notes
from automl.tasks.virtual import class_logits

VERSION = 1
"""Version of the way texts become tokens; a change makes old caches unused."""


class Classification(Task):
    """`text` (and `text_pair`) to `label`. Loss: cross-entropy per row. Metrics: loss, accuracy, macro_f1, mcc."""

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        data = self.settings.data
        column = column_name(data, "label")
        given, notes = self._examples()
        labels = check_classes(given, source_name(data), column)
        examples = split_examples(given, self.settings)
        notes += [*rare_classes(given), *split_notes(examples, self.settings)]
        recipe = _recipe(examples, labels, tokenizer, self.settings)
        made = prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=notes)
        return replace(made, baseline=recipe.baseline)  # what was cached may be of another objective

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        return _full_lengths(tokenizer, given["train"])

    def head(self, prepared: Prepared) -> Head:
        return Head("classification", prepared.labels)

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        labels = batch["labels"]
        total = functional.cross_entropy(_logits(model, batch).float(), labels, reduction="sum")
        return LossParts(total, len(labels))

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        return self.evaluate_by_row(model, batches, tokenizer)[0]

    def evaluate_by_row(
        self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        truth: list[int] = []
        predicted: list[int] = []
        losses: list[float] = []
        for batch in batches:
            logits = _logits(model, batch).double()
            losses.extend(functional.cross_entropy(logits, batch["labels"], reduction="none").tolist())
            truth.extend(batch["labels"].tolist())
            predicted.extend(logits.argmax(dim=-1).tolist())
        settings = self.settings
        scores = metrics.class_scores(truth, predicted, objective=settings.metric, also=settings.metrics)
        scores |= own_class_scores(truth, predicted, settings)
        return {"loss": metrics.mean(losses)} | scores, self._outcomes(truth, predicted, losses)

    def _outcomes(self, truth: Sequence[int], predicted: Sequence[int], losses: Sequence[float]) -> Outcomes | None:
        name = self.settings.metric
        if name == "loss":
            return Outcomes("values", losses)
        if name == "accuracy":
            return Outcomes("values", [float(a == b) for a, b in zip(truth, predicted, strict=True)])
        return Outcomes("classes", predicted) if METRICS[name].score is not None else None

    def _examples(self, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        data = self.settings.data
        reading = Reading(self.settings)
        given = {
            split: list(self._one_kind(split, islice(records, rows), reading))
            for split, records in read_splits(data, self.settings.rules).items()
        }
        return given, reading.notes

    def _one_kind(self, split: Split, records: Iterable[Record], reading: Reading) -> Iterator[Example]:
        """The examples of one split. Raises DataError if labels are of several kinds: no single row is wrong then."""
        column = column_name(self.settings.data, "label")
        kinds: dict[str, Record] = {}
        for example in limit_classes(reading.examples(split, records, self._reader(reading, kinds)), column):
            if len(kinds) > 1:
                raise _mixed(column, kinds)
            yield example

    def _reader(self, reading: Reading, kinds: dict[str, Record]) -> Callable[[Record], Example]:
        """Checked examples of one file, a pair if the data names or has a column `text_pair`; notes kinds of labels."""
        data = self.settings.data
        text, pair, label = (column_name(data, name) for name in ("text", "text_pair", "label"))
        is_pair = "text_pair" in data.columns

        def read(record: Record) -> Example:
            nonlocal is_pair
            both = is_pair or pair in record.values
            content = (take_text(record, text), take_text(record, pair)) if both else (take_text(record, text),)
            found = take_label(record, label)
            kinds.setdefault(found.kind, record)
            is_pair = both
            if record.row:  # otherwise the file is one example, and its columns are ours
                reading.unused(
                    (name, value) for name, value in record.values.items() if name not in (text, pair, label)
                )
            return Example(record.file, record.row, "\n".join(content), content, found.name)

        return read


def losses_by_row(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of every row, (N,) float32: what `Classification.loss` sums."""
    return functional.cross_entropy(_logits(model, batch).float(), batch["labels"], reduction="none")


def _mixed(column: str, kinds: dict[str, Record]) -> Exception:
    (first, earlier), (second, record) = kinds.items()
    what = f"label is a {second}, but a {first} in row {earlier.row}; one type in a file is needed"
    return fault(record, column, what)


def _recipe(examples: Examples, labels: Sequence[str], tokenizer: Any, settings: TaskSettings) -> Recipe:
    ids = {name: number for number, name in enumerate(labels)}
    is_pair = len(examples["train"][0].content) == 2
    names = ["input_ids", *(["token_type_ids"] if is_pair and _has_segments(tokenizer) else [])]

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        found = tokenizer(*_columns_of(chunk), truncation=True, max_length=settings.max_length)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(found[name] for name in names), strict=True)]
        tokens = [len(row["input_ids"]) for row in rows]
        full = [place for place, count in enumerate(tokens) if count >= settings.max_length]
        for place, count in zip(full, _full_lengths(tokenizer, [chunk[place] for place in full]), strict=True):
            tokens[place] = count
        labelled = zip(rows, tokens, chunk, strict=True)
        return [Encoded({**row, "labels": ids[example.label or ""]}, count) for row, count, example in labelled]

    return Recipe(
        encode=encode,
        version=VERSION,
        columns={**dict.fromkeys(names, True), "labels": False},
        labels=tuple(labels),
        baseline=majority_scores(
            [ids[example.label or ""] for example in examples["validation"]],
            objective=settings.metric,
            also=settings.metrics,
        ),
    )


def _columns_of(examples: Sequence[Example]) -> list[list[str]]:
    """The first texts, and the second ones of pairs."""
    return [list(column) for column in zip(*(example.content for example in examples), strict=True)]


def _full_lengths(tokenizer: Any, examples: Sequence[Example]) -> list[int]:
    """Tokens of each row before any cut."""
    if not examples:
        return []
    # verbose: no warning about texts longer than the model's limit, which are cut
    return list(map(len, tokenizer(*_columns_of(examples), verbose=False)["input_ids"]))


def _has_segments(tokenizer: Any) -> bool:
    """Whether the model tells two texts apart by numbered segments, as BERT does.

    Some decoders' tokenizers name `token_type_ids` too, and their models refuse them or (GPT-2) read them as words.
    Only tokenizers of the BERT family have a separator.
    """
    return "token_type_ids" in tokenizer.model_input_names and tokenizer.sep_token is not None


def majority_scores(truth: Sequence[int], *, objective: str = "accuracy", also: Sequence[str] = ()) -> dict[str, float]:
    """Scores of always saying the most frequent class; the loss is that of always saying the class frequencies."""
    winner = Counter(truth).most_common(1)[0][0]
    scores = metrics.class_scores(truth, [winner] * len(truth), objective=objective, also=also)
    return {"loss": metrics.entropy(truth)} | scores


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return class_logits(model, {name: tensor for name, tensor in batch.items() if name != "labels"})  # (N, classes)
