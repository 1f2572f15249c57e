"""The contract of a task: rows that are prepared once, a loss that adds up, metrics that do not depend on batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from automl.errors import DataError
from automl.space.load import parse_space
from automl.tasks import make_task
from automl.tasks.base import Batch, Prepared, Row, Task, Untuned

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class TaskContract:
    """task: its section of a space file, whose data is `data.jsonl`. rows: text of that file, 60 rows or more."""

    task: ClassVar[str]
    rows: ClassVar[str]

    @pytest.fixture
    def made(self, tmp_path: Path) -> Task:
        """The task over the data in a folder."""
        (tmp_path / "data.jsonl").write_text(self.rows, encoding="utf-8")
        text = f"version: 1\nstudy: s\nmodel: org/none\ntask: {self.task}\nfixed: {{max_length: 64}}\n"
        return make_task(parse_space(text, "space.yaml", tmp_path).task)

    @pytest.fixture
    def tokenizer(self) -> Any:
        """Words of the data by number, with [CLS] and [SEP] around a text."""
        words = sorted({word for line in self.rows.splitlines() for word in line.replace('"', " ").split()})
        vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", **names)

    @pytest.fixture
    def prepared(self, made: Task, tokenizer: Any, tmp_path: Path) -> Prepared:
        """Its data, ready."""
        return made.prepare(tokenizer, tmp_path / "cache")

    @pytest.fixture
    def model(self, made: Task, tokenizer: Any, prepared: Prepared) -> nn.Module:
        """A model of two layers with the head that the task asks for."""
        head = made.head(prepared)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            made_model: Any
            if head.kind == "seq2seq-lm":
                made_model = T5ForConditionalGeneration(_t5(len(tokenizer)))
            elif head.kind != "causal-lm":
                bert = BertConfig(vocab_size=len(tokenizer), num_labels=len(head.labels), pad_token_id=0, **sizes)
                is_tagger = head.kind == "token-classification"
                made_model = (BertForTokenClassification if is_tagger else BertForSequenceClassification)(bert)
            else:
                made_model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes))
        frozen: nn.Module = made_model.eval()
        return frozen

    def test_it_prepares_the_same_again(self, made: Task, tokenizer: Any, prepared: Prepared, tmp_path: Path) -> None:
        again = made.prepare(tokenizer, tmp_path / "elsewhere")
        assert again.fingerprint == prepared.fingerprint
        assert again.rows == prepared.rows
        assert made.prepare(tokenizer, tmp_path / "cache").path == prepared.path

    def test_it_withholds_the_test_rows(self, made: Task, prepared: Prepared) -> None:
        assert {"train", "validation", "test"} <= prepared.rows.keys()
        assert len(made.rows(prepared, "test")) == prepared.rows["test"] > 0
        with pytest.raises(DataError):
            made.rows(prepared.without_test(), "test")

    def test_its_loss_adds_up_over_micro_batches(
        self, made: Task, prepared: Prepared, model: nn.Module, tmp_path: Path
    ) -> None:
        made = made.on(prepared)
        rows = read(made, prepared, "train", model, tmp_path)
        chosen = [rows[place] for place in range(8)]
        with torch.no_grad():
            whole = made.loss(model, made.collate(chosen, 0))
            parts = [made.loss(model, batch) for batch in _batches(made, chosen, 3)]
        assert sum(part.count for part in parts) == whole.count > 0
        assert float(sum(part.total for part in parts)) == pytest.approx(float(whole.total), rel=1e-5)
        assert math.isfinite(float(whole.total))

    def test_it_measures_its_objective_and_the_loss(
        self, made: Task, prepared: Prepared, model: nn.Module, tokenizer: Any, tmp_path: Path
    ) -> None:
        made = made.on(prepared)
        rows = read(made, prepared, "validation", model, tmp_path)
        with torch.no_grad():
            metrics = made.evaluate(model, _batches(made, rows, 4), tokenizer)
            again = made.evaluate(model, _batches(made, rows, 7), tokenizer)
        assert {"loss", made.settings.metric} <= metrics.keys()
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
        assert again == pytest.approx(metrics, rel=1e-5, abs=2e-5), "metrics do not depend on the size of the batches"


def _t5(vocabulary: int) -> T5Config:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    return T5Config(vocab_size=vocabulary, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, **sizes)


def read(
    task: Task, prepared: Prepared, split: Literal["train", "validation"], model: nn.Module, folder: Path
) -> Sequence[Row]:
    """The rows as trials get them; the model is also the one that they are compared with."""
    rows = task.rows(prepared, split)
    untuned = Untuned(lambda: model, torch.device("cpu"), nullcontext, 0, folder / "reference")
    return task.referred(rows, split, untuned) if task.refers else rows


def _batches(task: Task, rows: Sequence[Row], size: int) -> Iterator[Batch]:
    for start in range(0, len(rows), size):
        yield task.collate([rows[place] for place in range(start, min(start + size, len(rows)))], 0)
