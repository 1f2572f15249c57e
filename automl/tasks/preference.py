"""Preference tuning: chosen and rejected answers to a prompt, or answers labelled desirable or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from automl.errors import DataError
from automl.lora import Hyperparameters
from automl.outcomes import Outcomes
from automl.space.schema_preference import LOSS
from automl.tasks import metrics
from automl.tasks.base import Batch, BatchTask, Head, LossParts, Prepared, Row, Task, Untuned
from automl.tasks.collate import pad_rows
from automl.tasks.conversation import Extras
from automl.tasks.preference_data import kind_of, reader, recipe
from automl.tasks.preference_losses import Said, pair_loss, single_loss
from automl.tasks.prepare import lengths, load_rows, prepare
from automl.tasks.read import Split, source_name
from automl.tasks.reading import read_examples
from automl.tasks.reference import LOGPS, Numbers, ReferredRows, targets_of, token_logps
from automl.tasks.split import Example, split_examples, split_notes
from automl.tasks.templates import knows_tools

LOSS_BETA = 0.1
"""Beta of the metric `loss`, whatever trials train with."""


class Preference(BatchTask):
    """`prompt` with `chosen` and `rejected`, or `prompt` and `completion` with `label`.

    A row is two texts: prompt with chosen and with rejected answer, or a completion after its own and after another
    prompt. Loss: by the trial's `loss`, per row. Metrics: loss, preference_accuracy, margin, kl.
    """

    texts = 2
    refers = True

    _hyper = Hyperparameters()
    """Hyperparameters of the trial that learns it; else DPO, or KTO of single labels, with their defaults."""

    def for_trial(self, hyper: Hyperparameters) -> Task:
        task = Preference(self.settings)
        task._hyper = hyper
        return task

    @property
    def compares_rows(self) -> bool:
        """KTO reads off the other rows how far the model has moved."""
        return LOSS.of(self._hyper) == "kto"

    def row_tokens(self, row: Row) -> int:
        return max(int(row["first"]), len(row["input_ids"]) - int(row["first"]))

    def refusal(self, prepared: Prepared, hyper: Hyperparameters) -> str:
        loss = LOSS.of(hyper)
        if loss == "kto" or not _has_labels(self.rows(prepared, "train")[0]):
            return ""
        return f"{loss} compares answers in pairs, and the data holds single labels; fixed: {{loss: kto}} learns them"

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples(tokenizer)
        kind = self._check_kinds(given)
        examples = split_examples(given, self.settings)
        notes += split_notes(examples, self.settings)
        made = recipe(tokenizer, self.settings, kind)
        return prepare(examples, self.settings, made, tokenizer=tokenizer, cache=cache, notes=notes)

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(tokenizer, rows)
        return lengths(recipe(tokenizer, self.settings, kind_of(given["train"][0])).encode(given["train"]))

    def head(self, prepared: Prepared) -> Head:
        return Head("causal-lm")

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def referred(self, rows: Sequence[Row], split: str, untuned: Untuned) -> Sequence[Row]:
        def compute(row: Row) -> Numbers:
            batch = {name: tensor.to(untuned.device) for name, tensor in self.collate([row], untuned.pad_id).items()}
            with torch.no_grad(), untuned.autocast():
                first, second = token_logps(untuned.model(), batch).float().cpu().numpy()
            return np.concatenate([first[: row["first"]], second[: len(row["input_ids"]) - row["first"]]])

        return ReferredRows(rows, untuned.folder / f"{split}.f32", compute)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        """The first texts of all rows, then the second ones; (2N, T)."""
        texts = [_text(row, is_first) for is_first in (True, False) for row in rows]
        batch = pad_rows(texts, pad_id)
        if LOGPS in rows[0]:
            batch[LOGPS] = torch.zeros(batch["labels"].shape)
            for place, text in enumerate(texts):
                batch[LOGPS][place, : len(text[LOGPS])] = torch.tensor(text[LOGPS])
        if _has_labels(rows[0]):
            batch["desirable"] = torch.tensor([bool(row["desirable"]) for row in rows])
        return batch

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        first, second = _said(model, batch).halves()
        hyper = self._hyper
        if "desirable" in batch:
            losses = single_loss(first, second, batch["desirable"], hyper)
        else:
            losses = pair_loss(first, second, hyper)
        return LossParts(losses.sum(), losses.numel())

    def judge(self, model: torch.nn.Module, batch: Batch) -> list[_Judged]:
        return _judged(model, batch)

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        rows: list[_Judged] = [row for batch in judged for row in batch]
        lead = [row.lead for row in rows]
        signed = [-row.lead if row.desirable is False else row.lead for row in rows]
        losses = [metrics.logistic_loss(LOSS_BETA * value) for value in signed]
        moved = math.fsum(row.moved for row in rows) / sum(row.tokens for row in rows)
        found = {"loss": metrics.mean(losses), "kl": moved}
        if rows[0].desirable is not None:
            scores = metrics.label_scores(lead, [bool(row.desirable) for row in rows])
            return found | scores, self._outcomes({"loss": losses})
        wins = [metrics.win(value) for value in lead]
        found |= {"preference_accuracy": metrics.mean(wins), "margin": metrics.mean(lead)}
        return found, self._outcomes({"loss": losses, "preference_accuracy": wins, "margin": lead})

    def _outcomes(self, by_row: Mapping[str, list[float]]) -> Outcomes | None:
        """What the objective was made of, where it is a mean over rows."""
        return Outcomes("values", by_row[self.settings.metric]) if self.settings.metric in by_row else None

    def _examples(self, tokenizer: Any, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        template = getattr(tokenizer, "chat_template", None)
        extras = Extras(turns=template is not None, tools=template is not None and knows_tools(template))
        return read_examples(self.settings, partial(reader, extras), rows)

    def _check_kinds(self, given: dict[Split, list[Example]]) -> str:
        """The kind of all rows. Raises DataError if splits are of several kinds, or all labels of train are alike."""
        kind = kind_of(given["train"][0])
        for example in (example for rows in given.values() for example in rows):
            if kind_of(example) != kind:  # those of one file are alike
                message = f"holds {kind_of(example)}, the training rows are {kind}; all have to be of one kind"
                raise DataError(f"{example.file}: {message}")
        labels = {example.label for example in given["train"]}
        if labels <= {None} or len(labels) > 1:
            return kind
        what = f"all {len(given['train'])} rows are {labels.pop()}; desirable and undesirable ones are needed"
        raise DataError(f"{source_name(self.settings.data)}, column 'label': {what}")


class _Judged(NamedTuple):
    """What a row says in an evaluation.

    lead: log-ratio of its chosen answer less that of the rejected one, in nats; of a single label the log-ratio.
    desirable: the label, None of a pair. moved: half the squared log-ratio of its tokens, summed. tokens: their number.
    """

    lead: float
    desirable: bool | None
    moved: float
    tokens: int


def _judged(model: torch.nn.Module, batch: Batch) -> list[_Judged]:
    if "desirable" in batch:  # the texts after other prompts are for training
        rows = len(batch["desirable"])
        batch = {name: tensor[:rows] for name, tensor in batch.items()}
    is_target = targets_of(batch)
    moved = (token_logps(model, batch) - batch[LOGPS]).double() * is_target
    parts = torch.stack([moved.sum(dim=1), (moved**2).sum(dim=1) / 2.0, is_target.sum(dim=1)], dim=1).tolist()
    if "desirable" in batch:
        labels = batch["desirable"].tolist()
        return [_Judged(lead, good, sq, int(n)) for (lead, sq, n), good in zip(parts, labels, strict=True)]
    pairs = zip(parts[: len(parts) // 2], parts[len(parts) // 2 :], strict=True)
    return [_Judged(a[0] - b[0], None, a[1] + b[1], int(a[2] + b[2])) for a, b in pairs]


def _said(model: torch.nn.Module, batch: Batch) -> Said:
    """What the model says of all texts of the batch."""
    is_target = targets_of(batch)
    reference = (batch[LOGPS] * is_target).sum(dim=1)
    return Said(token_logps(model, batch).sum(dim=1), reference, is_target.sum(dim=1))


def _text(row: Row, is_first: bool) -> Row:
    """One of the two texts of a row as a row of its own."""
    part = slice(None, row["first"]) if is_first else slice(row["first"], None)
    return {name: row[name][part] for name in ("input_ids", "labels", LOGPS) if name in row}


def _has_labels(row: Row) -> bool:
    return "desirable" in row
