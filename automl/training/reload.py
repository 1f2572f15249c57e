"""Proof that what was exported is complete: it is loaded in a fresh process, by the very lines a user is told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from automl.models.calling import quietly
from automl.training.runtime import HostSettings, Split, load_runtime


class Reloaded(NamedTuple):
    """What was found: the task's metrics, and the model's class names in the order of their ids."""

    metrics: dict[str, float]
    labels: tuple[str, ...]


def measure_afresh(lines: Sequence[str], settings: HostSettings, split: Split = "validation") -> Reloaded:
    """Run these lines of Python, which leave a `model`, in a process that has nothing else, and evaluate that model.

    Rows and evaluation are those of `settings`, its backbone is not read. Raises ModelError if the lines fail.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measure, "\n".join(lines), settings, split).result()


def _measure(text: str, settings: HostSettings, split: Split) -> Reloaded:
    runtime = load_runtime(settings, _model_of(text))
    rows = runtime.evaluation_rows if split == "validation" else runtime.task.rows(settings.prepared, split)
    found = runtime.evaluate(runtime.model, rows, runtime.evaluation_tokens)
    config: Any = runtime.model.config
    names = config.id2label if settings.prepared.labels else {}
    return Reloaded(found, tuple(names[index] for index in sorted(names)))


def _model_of(text: str) -> torch.nn.Module:
    """The `model` that the lines make. Its base is loaded from a folder of ours; nothing here comes from a stranger."""
    names: dict[str, Any] = {}
    with quietly("the exported model cannot be loaded as printed"), warnings.catch_warnings(action="ignore"):
        exec(text, names)  # noqa: S102
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    return model
