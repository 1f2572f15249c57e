"""Regression: one text or a pair of texts, one number out. Grades, such as one to five stars, are numbers too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from automl.errors import DataError
from automl.head import Scale
from automl.lora import Hyperparameters
from automl.metric import METRICS
from automl.outcomes import Outcomes
from automl.space.schema_judged import REGRESSION_LOSS
from automl.space.spec import TaskSettings
from automl.tasks.base import Batch, BatchTask, Head, LossParts, Prepared, Row, Task
from automl.tasks.collate import columns, pad_rows
from automl.tasks.fields import Record, column_name, take_number
from automl.tasks.metrics import mean
from automl.tasks.numbers import as_grades
from automl.tasks.prepare import Encoded, Recipe, load_rows, prepare
from automl.tasks.read import Split, source_name
from automl.tasks.reading import Reader, Reading, read_examples
from automl.tasks.split import Example, Examples, split_examples, split_notes
from automl.tasks.texts import Texts, TextTokenizer, check_pairs, full_lengths, text_example, text_reader
from automl.tasks.virtual import class_logits

VERSION = 1
"""Version of the way texts become tokens; a change makes old caches unused."""

MOST_GRADES = 100
"""Whole numbers that lie further apart than so many are no grades."""

_LEAST_SPREAD = 1e-9
"""Least deviation of the labels as a share of their size: below it rounding decides what is learnt."""

_GRADES = "quadratic_kappa"


class Regression(BatchTask):
    """`text` (and `text_pair`) to `label`, a number. Loss: by the trial's `regression_loss`, per row.

    What the model says is in standard units, as is the loss: (label - mean) / deviation over the training rows. All
    other metrics are in the unit of the labels: mse, rmse, mae, r2, pearson, spearman, of grades quadratic_kappa.
    """

    _scale = Scale(0.0, 1.0)
    _loss = str(REGRESSION_LOSS.default)

    def on(self, prepared: Prepared) -> Task:
        assert prepared.scale is not None
        task = Regression(self.settings)
        task._scale = prepared.scale
        return task

    def for_trial(self, hyper: Hyperparameters) -> Task:
        loss = str(REGRESSION_LOSS.of(hyper))
        if loss == self._loss:
            return self
        task = Regression(self.settings)
        task._scale, task._loss = self._scale, loss
        return task

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples()
        column = column_name(self.settings.data, "label")
        examples = split_examples(given, self.settings)
        scale = _scale_of(examples, f"{source_name(self.settings.data)}, column {column!r}")
        if self.settings.metric == _GRADES and scale.levels is None:
            what = f"labels are no grades; {_GRADES} needs whole numbers that lie at most {MOST_GRADES} apart"
            raise DataError(f"{source_name(self.settings.data)}, column {column!r}: {what}")
        notes += [*_notes(scale, examples), *split_notes(examples, self.settings)]
        recipe = _recipe(examples, scale, tokenizer, self.settings)
        made = prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=notes)
        return replace(made, labels=(column,))  # the same data may have the column by another name

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        return full_lengths(tokenizer, [example.content[:-1] for example in given["train"]])

    def head(self, prepared: Prepared) -> Head:
        return Head("regression", prepared.labels, prepared.scale)

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        wanted = (batch["labels"] - self._scale.mean) / self._scale.deviation
        said = _said(model, batch).float()
        return LossParts(_ERRORS[self._loss](said, wanted.float(), reduction="sum"), len(wanted))

    def judge(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        return batch["labels"], self._scale.mean + self._scale.deviation * _said(model, batch).double()

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        truth, predicted = columns(judged)
        errors = [a - b for a, b in zip(truth, predicted, strict=True)]
        by_row = {
            "loss": [(error / self._scale.deviation) ** 2 for error in errors],
            "mse": [error**2 for error in errors],
            "mae": [abs(error) for error in errors],
        }
        return {"loss": mean(by_row["loss"])} | self._scores(truth, predicted), self._outcomes(by_row, predicted)

    def _scores(self, truth: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
        """Every built-in metric of numbers, and the objective where it is of another package, by name."""
        built_in = (name for name in METRICS.built_in if "regression" in METRICS[name].tasks)
        names = [*built_in, *self.settings.measured]
        scores = {name: METRICS[name].score for name in names if name != _GRADES or self._scale.levels}
        return {
            name: float(score(truth, self._judged(name, predicted)))
            for name, score in scores.items()
            if score is not None
        }

    def _outcomes(self, by_row: Mapping[str, Sequence[float]], predicted: Sequence[float]) -> Outcomes | None:
        name = self.settings.metric
        if name in by_row:
            return Outcomes("values", by_row[name])
        return Outcomes("numbers", self._judged(name, predicted)) if METRICS[name].score is not None else None

    def _judged(self, name: str, predicted: Sequence[float]) -> Sequence[float]:
        return as_grades(predicted, self._scale) if name == _GRADES else predicted

    def _examples(self, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        given, notes = read_examples(self.settings, _reader, rows)
        check_pairs(given)
        return given, notes


_ERRORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}
"""Errors by row, of numbers in standard units. Sources: Huber 1964, "Robust estimation of a location parameter"."""


def _reader(settings: TaskSettings, reading: Reading) -> Reader:
    return partial(_read, text_reader(settings, reading, "label"), column_name(settings.data, "label"))


def _read(texts: Callable[[Record], Texts], column: str, record: Record) -> Example:
    return text_example(record, texts(record), (take_number(record, column),))


def _said(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """What the model says of every row, (N,)."""
    return class_logits(model, {name: tensor for name, tensor in batch.items() if name != "labels"})[:, 0]


def _scale_of(examples: Examples, where: str) -> Scale:
    """The unit of the training rows' labels. Raises DataError if they are all alike, so that nothing can be learnt."""
    numbers = _numbers(examples["train"])
    centre = mean(numbers)
    deviation = math.sqrt(mean([(number - centre) ** 2 for number in numbers]))
    least, greatest = min(numbers), max(numbers)
    if deviation <= _LEAST_SPREAD * max(abs(least), abs(greatest)):
        alike = f"all {len(numbers)} training labels are {least:g}"
        close = f"training labels lie between {least!r} and {greatest!r}, too close to be told apart"
        raise DataError(f"{where}: {alike if least == greatest else close}; labels that differ are needed")
    is_grade = all(number.is_integer() for number in numbers) and greatest - least <= MOST_GRADES
    return Scale(centre, deviation, (int(least), int(greatest)) if is_grade else None)


def _numbers(examples: Sequence[Example]) -> list[float]:
    return [example.content[-1] for example in examples]


def _notes(scale: Scale, examples: Examples) -> Iterator[str]:
    """The unit, and labels of other splits far from all of train."""
    numbers = _numbers(examples["train"])
    least, greatest = min(numbers), max(numbers)
    yield (
        f"labels of train lie in {least:g} … {greatest:g}, with mean {scale.mean:.4g} and deviation"
        f" {scale.deviation:.4g}; they are learnt in units of it, and all metrics but loss are in their own"
    )
    for split in ("validation", "test"):
        outside = sum(not least <= number <= greatest for number in _numbers(examples[split]))
        if outside:
            yield f"{outside} of {len(examples[split])} {split} labels lie outside of those of train"


def _recipe(examples: Examples, scale: Scale, tokenizer: Any, settings: TaskSettings) -> Recipe:
    tokenised = TextTokenizer(tokenizer, settings, is_pair=len(examples["train"][0].content) == 3)

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        tokens = tokenised([example.content[:-1] for example in chunk])
        labelled = zip(tokens, chunk, strict=True)
        return [Encoded({**each.row, "labels": example.content[-1]}, each.length) for each, example in labelled]

    return Recipe(
        encode=encode,
        version=VERSION,
        columns={**dict.fromkeys(tokenised.columns, True), "labels": False},
        baseline={},
        reals=("labels",),
        scale=scale,
    )
