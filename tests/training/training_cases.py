"""What the tests of training share: a tiny backbone and data set on disk, settings, specs, and tasks that misbehave."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from automl.lora import Hyperparameters
from automl.models.backbone import load_tokenizer, resolve_model
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Batch, Head, LossParts, Prepared, Row, Task
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement, TrialSpec
from tests.architectures import VOCABULARY, tiny_model

LABELS = ("angry", "calm", "merry")
"""Class c is told by the words w10c … w10c+9 of the tiny vocabulary."""


def write_backbone(
    folder: Path, architecture: str, *, kind: str = "classification", model: torch.nn.Module | None = None
) -> Path:
    """A tiny random model with a word-level tokenizer, as a user would have it on disk; with its dropout of 0.1.

    model: takes the place of the one of this architecture.
    """
    model = model or tiny_model(architecture, kind=kind)
    model.save_pretrained(folder)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(VOCABULARY - 4))]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def write_rows(path: Path, *, rows: int = 120, seed: int = 0) -> Path:
    """JSONL for classification (text, label) and, from the same rows, completion (prompt, response)."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            label = number % len(LABELS)
            hints = [f"w{10 * label + rng.randrange(10)}" for _ in range(rng.randint(2, 6))]
            noise = [f"w{30 + rng.randrange(25)}" for _ in range(rng.randint(1, 5))]
            words = rng.sample(hints + noise, len(hints) + len(noise))
            row = {
                "text": " ".join(words),
                "label": LABELS[label],
                "prompt": " ".join(words),
                "response": f"w{55 + label}",
            }
            stream.write(json.dumps(row) + "\n")
    return path


def task_settings(data: Path, *, kind: str = "classification", **options: Any) -> TaskSettings:
    defaults: dict[str, Any] = {
        "metric": "accuracy" if kind == "classification" else "loss",
        "seed": 3,
        "max_length": 16,
        "evaluate_rows": 20,
    }
    return TaskSettings(
        type="classification" if kind == "classification" else "completion",
        data=DataSettings(kind="files", files={"train": str(data)}),
        **{**defaults, **options},
    )


def host_settings(
    folder: Path, *, architecture: str = "bert", kind: str = "classification", **options: Any
) -> HostSettings:
    """Settings over a backbone and data made in `folder`; output in `folder/out`."""
    if not (folder / "model").exists():
        write_backbone(folder / "model", architecture, kind=kind)
    settings = task_settings(write_rows(folder / "rows.jsonl"), kind=kind)
    cache = folder / "cache"
    backbone = resolve_model(ModelSettings(kind="folder", location=str(folder / "model")), cache)
    prepared = make_task(settings).prepare(load_tokenizer(backbone), cache)
    return HostSettings(
        backbone=backbone,
        task=settings,
        prepared=prepared,
        **{"output": str(folder / "out"), "device": "cpu", "threads": 1, **options},
    )


def trial_spec(
    number: int = 0, *, steps: int = 12, evaluate_every: int = 4, attempt: int = 1, **hyper: Any
) -> TrialSpec:
    values: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "learning_rate": 2e-2, "batch_size": 6}
    return TrialSpec(
        number=number,
        params={},
        hyper=Hyperparameters(**{**values, **hyper}),
        seed=100 + number,
        data_seed=7,
        steps=steps,
        evaluate_every=evaluate_every,
        attempt=attempt,
    )


def curve(measurements: Sequence[Measurement]) -> list[tuple[int, dict[str, float], int]]:
    """All of the measurements that must not depend on the machine: everything but the seconds."""
    return [(item.step, dict(item.metrics), item.tokens) for item in measurements]


def run(runtime: Runtime, spec: TrialSpec) -> list[Measurement]:
    return list(train(SoloTrial(spec, runtime)))


class WrappedTask(Task):
    """Another task, with one method of a subclass in front of it."""

    def __init__(self, inner: Task) -> None:
        super().__init__(inner.settings)
        self.inner = inner

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        return self.inner.prepare(tokenizer, cache)

    def head(self, prepared: Prepared) -> Head:
        return self.inner.head(prepared)

    def rows(self, prepared: Prepared, split: Any) -> Sequence[Row]:
        return self.inner.rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return self.inner.collate(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        return self.inner.loss(model, batch)

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        return self.inner.evaluate(model, batches, tokenizer)


class SmallMemory(WrappedTask):
    """Has room for `most` rows of a training batch and `most_tokens` of an evaluation batch."""

    def __init__(self, inner: Task, *, most: int, most_tokens: int = 10**9, error: Exception | None = None) -> None:
        super().__init__(inner)
        self.most = most
        self.most_tokens = most_tokens
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes: list[int] = []

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        parts = super().loss(model, batch)  # the masks are drawn before memory runs out
        if len(batch["input_ids"]) > self.most:
            raise self.error
        self.sizes.append(len(batch["input_ids"]))
        return parts

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        return super().evaluate(model, map(self._fitting, batches), tokenizer)

    def _fitting(self, batch: Batch) -> Batch:
        if batch["input_ids"].numel() > self.most_tokens:
            raise self.error
        return batch


class FailsAt(WrappedTask):
    """Returns `loss` (or raises it) as the training loss of the given step, counted from 1."""

    def __init__(self, inner: Task, *, step: int, loss: float | BaseException) -> None:
        super().__init__(inner)
        self.left = step
        self.bad = loss

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        parts = super().loss(model, batch)
        self.left -= 1
        if self.left == 0:
            if isinstance(self.bad, BaseException):
                raise self.bad
            return LossParts(parts.total * self.bad, parts.count)
        return parts


class BadMetric(WrappedTask):
    """Reports `value` as its loss."""

    def __init__(self, inner: Task, value: float) -> None:
        super().__init__(inner)
        self.value = value

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        return super().evaluate(model, batches, tokenizer) | {"loss": self.value}


def runtime_with(settings: HostSettings, wrap: Any = None) -> Runtime:
    runtime = load_runtime(settings)
    return runtime if wrap is None else replace(runtime, task=wrap(runtime.task))
