"""A task: texts with a number, learnt as so many classes of equal width. Its section, and what it does with a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from automl.space.schema_task import TaskSection
from automl.tasks.base import Batch, Head, LossParts, Prepared, Row, Task

if TYPE_CHECKING:
    import torch

    from automl.tasks.fields import Record
    from automl.tasks.split import Example


class RatedTask(TaskSection):
    """One number per text, from 0 to 1, learnt as classes of equal width."""

    classes: Annotated[int, Field(ge=2, le=20)] = 3
    """How many."""

    implementation: ClassVar[str] = "automl_rated:Rated"
    default_metric: ClassVar[str] = "accuracy"
    like: ClassVar[str] = "classification"


class Rated(Task):
    """`text` to `rating`. Loss: cross-entropy per row. Metrics: those of classification."""

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        from automl.tasks.classification import majority_scores
        from automl.tasks.prepare import Encoded, Recipe, prepare
        from automl.tasks.read import read_splits
        from automl.tasks.reading import Reading
        from automl.tasks.split import split_examples

        reading = Reading(self.settings)
        records = read_splits(self.settings.data, self.settings.rules).items()
        given = {split: list(reading.examples(split, rows, self._read)) for split, rows in records}
        examples = split_examples(given, self.settings)
        labels = tuple(f"class {number}" for number in range(self._classes))

        def encode(chunk: Sequence[Example]) -> list[Encoded]:
            texts = [example.text for example in chunk]
            found = tokenizer(texts, truncation=True, max_length=self.settings.max_length)["input_ids"]
            rows = zip(found, chunk, strict=True)
            return [Encoded({"input_ids": ids, "labels": labels.index(str(row.label))}, len(ids)) for ids, row in rows]

        truth = [labels.index(str(example.label)) for example in examples["validation"]]
        recipe = Recipe(
            encode=encode,
            version=1,
            columns={"input_ids": True, "labels": False},
            labels=labels,
            baseline=majority_scores(truth, objective=self.settings.metric),
        )
        return prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=reading.notes)

    def head(self, prepared: Prepared) -> Head:
        return Head("classification", prepared.labels)

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        from automl.tasks.prepare import load_rows

        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        from automl.tasks.collate import pad_rows

        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        from automl.tasks.classification import losses_by_row

        losses = losses_by_row(model, batch)
        return LossParts(losses.sum(), losses.numel())

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        from automl.tasks.classification import losses_by_row
        from automl.tasks.metrics import class_scores, mean

        truth: list[int] = []
        predicted: list[int] = []
        losses: list[float] = []
        for batch in batches:
            losses += losses_by_row(model, batch).tolist()
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            predicted += model(**inputs).logits.argmax(dim=-1).tolist()
            truth += batch["labels"].tolist()
        return {"loss": mean(losses)} | class_scores(truth, predicted, objective=self.settings.metric)

    @property
    def _classes(self) -> int:
        return int(self.settings.own["classes"])

    def _read(self, record: Record) -> Example:
        from automl.tasks.fields import fault, take_text
        from automl.tasks.split import Example

        text, rating = take_text(record, "text"), record.values.get("rating")
        if not isinstance(rating, (int, float)) or not 0 <= rating <= 1:
            raise fault(record, "rating", f"{rating!r} is not a number from 0 to 1")
        number = min(self._classes - 1, int(rating * self._classes))
        return Example(record.file, record.row, text, (text,), f"class {number}")
