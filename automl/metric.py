"""Metrics by name: direction, bounds and the tasks they fit. How they are computed is in `automl.tasks.metrics`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Direction = Literal["minimize", "maximize"]


class Metric(NamedTuple):
    """A metric's direction, its closed range, and the task types that can report it."""

    direction: Direction
    low: float
    high: float
    tasks: tuple[str, ...]


_CLASSIFICATION = ("classification",)
_TEXT = ("completion", "instruction")

METRICS: dict[str, Metric] = {
    "accuracy": Metric("maximize", 0.0, 1.0, _CLASSIFICATION),
    "macro_f1": Metric("maximize", 0.0, 1.0, _CLASSIFICATION),
    "mcc": Metric("maximize", -1.0, 1.0, _CLASSIFICATION),
    "loss": Metric("minimize", 0.0, math.inf, _CLASSIFICATION + _TEXT),
    "perplexity": Metric("minimize", 1.0, math.inf, _TEXT),
    "exact_match": Metric("maximize", 0.0, 1.0, _TEXT),
    "rouge_l": Metric("maximize", 0.0, 1.0, _TEXT),
}
"""Every metric the objective may be. `loss` is the mean per row (classification) or target token (text), in nats."""

GENERATION_METRICS = frozenset({"exact_match", "rouge_l"})
"""Those for which a model has to write answers."""
