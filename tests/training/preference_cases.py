"""What the tests of preferences share: a tiny Llama whose weights say something, its chat template, rows, settings."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from automl.lora import Hyperparameters
from automl.models.backbone import load_tokenizer, resolve_model
from automl.space.spec import DataSettings, ModelSettings, TaskSettings
from automl.tasks import make_task
from automl.training.runtime import HostSettings
from automl.trial import TrialSpec
from tests.architectures import tiny_model
from tests.training.training_cases import write_backbone

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} [SEP]"
    "{% elif not loop.last or add_generation_prompt %} {% endif %}{% endfor %}"
)
"""Plain words: a prompt of one word is one token, and an answer ends with the token that ends texts."""


def lively_llama(seed: int = 5) -> torch.nn.Module:
    """A Llama whose weights are large enough for probabilities to be far from equal."""
    model = tiny_model("llama", kind="causal-lm")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.02 if "norm" in name else 0.15
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def words(rng: random.Random, low: int, high: int, count: int) -> str:
    return " ".join(f"w{rng.randrange(low, high)}" for _ in range(count))


def pairs(count: int, *, seed: int = 0, prompt: int = 1, chosen: int = 3) -> list[dict[str, Any]]:
    """Chosen answers of one length of words w30 to w39, rejected ones of several lengths of w40 to w49."""
    rng = random.Random(seed)
    return [
        {
            "prompt": words(rng, 0, 30, prompt),
            "chosen": words(rng, 30, 42, chosen),
            "rejected": words(rng, 38, 50, rng.randint(1, 5)),
        }
        for _ in range(count)
    ]


def singles(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Two desirable rows, then an undesirable one, and so on."""
    rng = random.Random(seed)
    return [
        {
            "prompt": words(rng, 0, 30, 2),
            "completion": words(rng, *((30, 42) if number % 3 else (38, 50)), rng.randint(1, 4)),
            "label": bool(number % 3),
        }
        for number in range(count)
    ]


def messages_of(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its texts as lists of one message, as TRL takes conversations."""
    return {
        name: [{"role": "user" if name == "prompt" else "assistant", "content": value}]
        if isinstance(value, str)
        else value
        for name, value in row.items()
    }


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def preference_settings(folder: Path, rows: Sequence[dict[str, Any]], **options: Any) -> HostSettings:
    """Settings over a backbone made in `folder`, trained on and judged by these rows."""
    if not (folder / "model").exists():
        write_backbone(folder / "model", "llama", kind="causal-lm", model=lively_llama())
        (folder / "model" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    path = str(write(folder / "rows.jsonl", rows))
    task = TaskSettings(
        type="preference",
        data=DataSettings(kind="files", files={"train": path, "validation": path}),
        metric="preference_accuracy",
        max_length=16,
        test_share=0.0,
    )
    backbone = resolve_model(ModelSettings(kind="folder", location=str(folder / "model")), folder / "cache")
    prepared = make_task(task).prepare(load_tokenizer(backbone), folder / "cache")
    values: dict[str, Any] = {"output": str(folder / "out"), "device": "cpu", "threads": 1, "importance": False}
    return HostSettings(backbone=backbone, task=task, prepared=prepared, **{**values, **options})


def preference_spec(steps: int = 20, **own: Any) -> TrialSpec:
    """A trial at a constant rate without weight decay. own: hyperparameters of the task, or of the method."""
    general = {name: own.pop(name) for name in ("method", "learning_rate", "batch_size") if name in own}
    hyper = Hyperparameters(
        **{"rank": 4, "alpha": 8.0, "learning_rate": 5e-3, "batch_size": 4, **general},
        weight_decay=0.0,
        warmup=0.0,
        schedule="constant",
        own=tuple(sorted(own.items())),
    )
    return TrialSpec(number=0, params={}, hyper=hyper, seed=9, data_seed=7, steps=steps, evaluate_every=steps)
