"""What the tests of regression and its neighbours share: a BERT whose weights say something, rows, and settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from automl.models.backbone import load_tokenizer, resolve_model
from automl.packed.workload import Workload
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.training.runtime import HostSettings, Runtime
from tests.architectures import tiny_model
from tests.training.preference_cases import write
from tests.training.training_cases import write_backbone

Rows = list[dict[str, Any]]


def lively_bert(seed: int = 5) -> torch.nn.Module:
    """A BERT whose weights are large enough for a wrong one to show."""
    model = tiny_model("bert")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.02 if "LayerNorm" in name else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def numbered(count: int, *, seed: int = 0) -> Rows:
    """The label says how high the words' numbers are, in a unit far from 0 and 1."""
    rng = random.Random(seed)
    drawn = ([rng.randrange(60) for _ in range(rng.randint(2, 7))] for _ in range(count))
    return [
        {"text": " ".join(f"w{word}" for word in words), "label": round(400.0 + 3.0 * sum(words) / len(words), 2)}
        for words in drawn
    ]


def several(count: int, *, seed: int = 0) -> Rows:
    """Each label applies where a word of its range is; some rows have none."""
    rng = random.Random(seed)
    drawn = ([rng.randrange(60) for _ in range(rng.randint(1, 5))] for _ in range(count))
    return [
        {
            "text": " ".join(f"w{word}" for word in words),
            "labels": sorted({"abcd"[word // 10] for word in words if word < 40}),
        }
        for words in drawn
    ]


def tagged(count: int, *, seed: int = 0) -> Rows:
    """Words from w40 on are of an entity, of a kind by their number; it ends with the next word below w40."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.randrange(60) for _ in range(rng.randint(2, 8))]
        tags: list[str] = []
        for word in words:
            kind = "" if word < 40 else "PER" if word < 50 else "LOC"
            goes_on = bool(tags) and tags[-1][2:] == kind
            tags.append(f"{'I' if goes_on else 'B'}-{kind}" if kind else "O")
        rows.append({"words": [f"w{word}" for word in words], "tags": tags})
    return rows


def uneven(count: int, *, seed: int = 0) -> Rows:
    """Two classes, of which the second has every sixth row."""
    rng = random.Random(seed)
    return [
        {
            "text": " ".join(f"w{rng.randrange(*((20, 60) if number % 6 else (0, 30)))}" for _ in range(4)),
            "label": "common" if number % 6 else "rare",
        }
        for number in range(count)
    ]


ROWS: dict[str, Callable[[int], Rows]] = {
    "regression": numbered,
    "multi_label": several,
    "token_classification": tagged,
}
"""Rows of each task."""


def judged_settings(folder: Path, kind: str, *, metric: str, rows: Rows | None = None, **options: Any) -> HostSettings:
    """Settings over a backbone made in `folder`, trained on and judged by rows of this task."""
    if not (folder / "model").exists():
        write_backbone(folder / "model", "bert", model=lively_bert())
    path = str(write(folder / "rows.jsonl", rows or ROWS.get(kind, uneven)(48)))
    task = TaskSettings(
        type=kind, data=DataSettings(kind="files", files={"train": path}), metric=metric, max_length=16, seed=3
    )
    backbone = resolve_model(ModelSettings(kind="folder", location=str(folder / "model")), folder / "cache")
    prepared = make_task(task).prepare(load_tokenizer(backbone), folder / "cache")
    values: dict[str, Any] = {"output": str(folder / "out"), "device": "cpu", "threads": 1, "importance": False}
    return HostSettings(backbone=backbone, task=task, prepared=prepared, **{**values, **options})


def workload_of(runtime: Runtime) -> Workload:
    """The rows and the task of a runtime, as a pack has them."""
    return Workload(
        task=runtime.task,
        train_rows=runtime.train_rows,
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=runtime.tokenizer,
    )


def own(**values: Any) -> dict[str, Sequence[tuple[str, Any]]]:
    """Hyperparameters that the task brings, for `trial_spec`."""
    return {"own": tuple(sorted(values.items()))}
