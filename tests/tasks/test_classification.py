from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from automl.space.spec import TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Head
from automl.tasks.batches import evaluation_batches

WORDS = ["good", "bad", "great", "awful", "film", "plot", "was", "the", "a", "not"]


def lines(rows: int, *, pair: bool = False) -> str:
    found = []
    for row in range(rows):
        words = [WORDS[(row * 7 + place * 3 + row // 10) % 10] for place in range(3 + row % 5)] + [f"n{row}"]
        values = {"text": " ".join(words), "label": row % 3}
        found.append(json.dumps(values | ({"text_pair": "the plot"} if pair else {})))
    return "\n".join(found)


@pytest.fixture(scope="module")
def tiny_bert() -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval().requires_grad_(False)


def test_rows_hold_tokens_and_the_class_number(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    task = make_task(settings_for("classification", train=lines(60), max_length=6))
    prepared = task.prepare(bert_tokenizer, tmp_path / "cache")
    assert prepared.labels == ("0", "1", "2")
    assert task.head(prepared) == Head("classification", ("0", "1", "2"))
    assert sum(prepared.rows.values()) == 60
    rows = task.rows(prepared, "train")
    assert len(rows) == prepared.rows["train"]
    assert set(rows[0]) == {"input_ids", "labels"}
    assert max(len(row["input_ids"]) for row in rows) == prepared.longest == 6
    assert all(row["input_ids"][0] == 2 and row["input_ids"][-1] == 3 for row in rows)  # [CLS], [SEP] kept when cut


def test_a_pair_carries_its_segments(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    task = make_task(settings_for("classification", train=lines(60, pair=True)))
    prepared = task.prepare(bert_tokenizer, tmp_path / "cache")
    row = task.rows(prepared, "train")[0]
    assert row["token_type_ids"] == sorted(row["token_type_ids"])
    assert sum(row["token_type_ids"]) == 3  # the plot [SEP]
    batch = task.collate([row, task.rows(prepared, "train")[1]], 0)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


def test_a_decoder_is_given_no_segments(
    settings_for: Callable[..., TaskSettings], plain_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(plain_tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    task = make_task(settings_for("classification", train=lines(60, pair=True)))
    assert set(task.rows(task.prepare(tokenizer, tmp_path / "cache"), "train")[0]) == {"input_ids", "labels"}


def test_columns_are_mapped(settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path) -> None:
    content = lines(60).replace('"text"', '"sentence"').replace('"label"', '"fine"')
    settings = settings_for("classification", train=content, columns={"text": "sentence", "label": "fine"})
    assert make_task(settings).prepare(bert_tokenizer, tmp_path / "cache").labels == ("0", "1", "2")


def test_the_baseline_is_the_majority_class_of_validation(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    validation = "\n".join(json.dumps({"text": f"film {row}", "label": int(row < 2)}) for row in range(10))
    train = lines(30)
    prepared = make_task(settings_for("classification", train=train, validation=validation)).prepare(
        bert_tokenizer, tmp_path / "cache"
    )
    assert prepared.rows["validation"] == 10
    assert prepared.baseline["accuracy"] == 0.8
    assert prepared.baseline["macro_f1"] == pytest.approx((2 * 8 / (8 + 10)) / 2)
    assert prepared.baseline["mcc"] == 0.0
    assert prepared.baseline["loss"] == pytest.approx(0.500402, abs=1e-6)  # entropy of 0.8, 0.2


class Batches(NamedTuple):
    task: Any
    rows: Any
    whole: Any


@pytest.fixture
def prepared_batch(settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path) -> Batches:
    task = make_task(settings_for("classification", train=lines(60)))
    rows = task.rows(task.prepare(bert_tokenizer, tmp_path / "cache"), "train")
    return Batches(task, rows, task.collate(rows[:], bert_tokenizer.pad_token_id))


def test_the_loss_is_the_models_own(prepared_batch: Batches, tiny_bert: torch.nn.Module) -> None:
    parts = prepared_batch.task.loss(tiny_bert, prepared_batch.whole)
    assert parts.count == len(prepared_batch.rows)
    assert (parts.total / parts.count).item() == pytest.approx(tiny_bert(**prepared_batch.whole).loss.item(), abs=1e-6)


def test_micro_batches_change_nothing(prepared_batch: Batches, tiny_bert: torch.nn.Module) -> None:
    task, rows, whole = prepared_batch
    parts = [task.loss(tiny_bert, task.collate(rows[start : start + 7], 0)) for start in range(0, len(rows), 7)]
    total = task.loss(tiny_bert, whole)
    assert sum(part.count for part in parts) == total.count
    assert sum(part.total.item() for part in parts) == pytest.approx(total.total.item(), rel=1e-6)


def test_evaluation_agrees_with_the_logits(
    prepared_batch: Batches, tiny_bert: torch.nn.Module, bert_tokenizer: Any
) -> None:
    task, rows, whole = prepared_batch
    batches = evaluation_batches(task, rows, range(len(rows)), pad_id=0, max_tokens=64)
    scores = task.evaluate(tiny_bert, batches, bert_tokenizer)
    logits = tiny_bert(**{name: tensor for name, tensor in whole.items() if name != "labels"}).logits
    hits = int((logits.argmax(-1) == whole["labels"]).sum())
    assert set(scores) == {"loss", "accuracy", "macro_f1", "mcc"}
    assert scores["accuracy"] == hits / len(rows)
    assert scores["loss"] == pytest.approx(functional.cross_entropy(logits, whole["labels"]).item(), abs=1e-6)
    assert all(type(value) is float for value in scores.values())


def test_a_stray_header_row_is_reported(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    content = "text,label\n" + "".join(f"film {row},{'ab'[row % 2]}\n" for row in range(40)) + "text,label\n"
    settings = settings_for("classification", train=content, suffix=".csv")
    prepared = make_task(settings).prepare(bert_tokenizer, tmp_path / "cache")
    assert prepared.labels == ("a", "b", "label")
    assert prepared.notes[0].startswith(f"{tmp_path}/train.csv, row 42: class 'label' occurs only once in 41 rows")


def test_truth_values_and_whole_floats_are_classes(
    settings_for: Callable[..., TaskSettings], bert_tokenizer: Any, tmp_path: Path
) -> None:
    truth = "\n".join(json.dumps({"text": f"film {row}", "label": row % 2 == 0}) for row in range(30))
    settings = settings_for("classification", train=truth)
    assert make_task(settings).prepare(bert_tokenizer, tmp_path / "cache").labels == ("false", "true")
    floats = "\n".join(json.dumps({"text": f"film {row}", "label": float(row % 2)}) for row in range(30))
    settings = settings_for("classification", train=floats)
    assert make_task(settings).prepare(bert_tokenizer, tmp_path / "cache").labels == ("0", "1")
