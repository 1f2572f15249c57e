"""Text classification: one text or a pair of texts, one class out of two to a thousand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from automl.lora import Hyperparameters
from automl.metric import METRICS
from automl.outcomes import Outcomes
from automl.space.schema_task import CLASS_WEIGHTS
from automl.space.spec import TaskSettings
from automl.tasks import metrics
from automl.tasks.base import Batch, BatchTask, Head, LossParts, Prepared, Row, Task
from automl.tasks.collate import columns, pad_rows
from automl.tasks.fields import Record, column_name, fault, take_label
from automl.tasks.labels import check_classes, limit_classes, rare_classes
from automl.tasks.own_metrics import own_class_scores
from automl.tasks.prepare import Encoded, Recipe, load_rows, prepare
from automl.tasks.read import Split, source_name
from automl.tasks.reading import Reader, Reading, read_parts
from automl.tasks.split import Example, Examples, split_examples, split_notes
from automl.tasks.texts import TextTokenizer, check_pairs, full_lengths, text_example, text_reader
from automl.tasks.virtual import class_logits

VERSION = 1
"""Version of the way texts become tokens; a change makes old caches unused."""


class Classification(BatchTask):
    """`text` (and `text_pair`) to `label`. Loss: cross-entropy per row. Metrics: loss, accuracy, macro_f1, mcc.

    With `class_weights: balanced` a trial's loss weighs each row by rows / (classes x rows of its class), counted in
    train, so that all classes weigh alike and the mean weight is 1 (King and Zeng 2001, as scikit-learn's `balanced`).
    """

    _prepared: Prepared | None = None
    _weights: torch.Tensor | None = None
    """Weights of the classes, in the order of their ids; None: all alike."""

    def on(self, prepared: Prepared) -> Task:
        task = type(self)(self.settings)
        task._prepared = prepared
        return task

    def for_trial(self, hyper: Hyperparameters) -> Task:
        if CLASS_WEIGHTS.of(hyper) != "balanced":
            return self
        assert self._prepared is not None, "weights follow from the training rows"
        task = type(self)(self.settings)
        task._weights = balanced_weights([row["labels"] for row in self.rows(self._prepared, "train")])
        return task

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
        return full_lengths(tokenizer, [example.content for example in given["train"]])

    def head(self, prepared: Prepared) -> Head:
        return Head("classification", prepared.labels)

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        labels = batch["labels"]
        weights = None if self._weights is None else self._weights.to(labels.device)
        total = functional.cross_entropy(_logits(model, batch).float(), labels, weight=weights, reduction="sum")
        return LossParts(total, len(labels))

    def judge(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        labels, logits = batch["labels"], _logits(model, batch).double()
        return functional.cross_entropy(logits, labels, reduction="none"), labels, logits.argmax(dim=-1)

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        losses, truth, predicted = columns(judged)
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
        given, notes = read_parts(self.settings, _of_one_kind, rows)
        check_pairs(given)
        return given, notes


def _of_one_kind(
    settings: TaskSettings, reading: Reading, split: Split, records: Iterable[Record]
) -> Iterator[Example]:
    """The examples of one split. Raises DataError if labels are of several kinds: no single row is wrong then."""
    column = column_name(settings.data, "label")
    kinds: dict[str, Record] = {}
    for example in limit_classes(reading.examples(split, records, _reader(settings, reading, kinds)), column):
        if len(kinds) > 1:
            raise _mixed(column, kinds)
        yield example


def _reader(settings: TaskSettings, reading: Reading, kinds: dict[str, Record]) -> Reader:
    """Checked examples of one file; notes kinds of labels."""
    label = column_name(settings.data, "label")
    texts = text_reader(settings, reading, "label")

    def read(record: Record) -> Example:
        content, found = texts(record), take_label(record, label)
        kinds.setdefault(found.kind, record)
        return text_example(record, content, label=found.name)

    return read


def balanced_weights(labels: Sequence[int]) -> torch.Tensor:
    """Weight of each class, (classes,), by which rows of all classes weigh alike and all rows 1 in the mean."""
    counts = torch.bincount(torch.tensor(labels)).float()
    return len(labels) / (len(counts) * counts)


def losses_by_row(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of every row, (N,) float32: what `Classification.loss` sums where all classes weigh alike."""
    return functional.cross_entropy(_logits(model, batch).float(), batch["labels"], reduction="none")


def _mixed(column: str, kinds: dict[str, Record]) -> Exception:
    (first, earlier), (second, record) = kinds.items()
    what = f"label is a {second}, but a {first} in row {earlier.row}; one type in a file is needed"
    return fault(record, column, what)


def _recipe(examples: Examples, labels: Sequence[str], tokenizer: Any, settings: TaskSettings) -> Recipe:
    ids = {name: number for number, name in enumerate(labels)}
    tokenised = TextTokenizer(tokenizer, settings, is_pair=len(examples["train"][0].content) == 2)

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        tokens = tokenised([example.content for example in chunk])
        labelled = zip(tokens, chunk, strict=True)
        return [Encoded({**each.row, "labels": ids[example.label or ""]}, each.length) for each, example in labelled]

    return Recipe(
        encode=encode,
        version=VERSION,
        columns={**dict.fromkeys(tokenised.columns, True), "labels": False},
        labels=tuple(labels),
        baseline=majority_scores(
            [ids[example.label or ""] for example in examples["validation"]],
            objective=settings.metric,
            also=settings.metrics,
        ),
    )


def majority_scores(truth: Sequence[int], *, objective: str = "accuracy", also: Sequence[str] = ()) -> dict[str, float]:
    """Scores of always saying the most frequent class; the loss is that of always saying the class frequencies."""
    winner = Counter(truth).most_common(1)[0][0]
    scores = metrics.class_scores(truth, [winner] * len(truth), objective=objective, also=also)
    return {"loss": metrics.entropy(truth)} | scores


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return class_logits(model, {name: tensor for name, tensor in batch.items() if name != "labels"})  # (N, classes)
