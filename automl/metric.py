"""Metrics by name: direction, bounds and the tasks they fit. How they are computed is in `automl.tasks.metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from automl.registry import Registry, instance_of

Direction = Literal["minimize", "maximize"]

_MARGIN_BOUNDED = 0.01
_MARGIN_RELATIVE = 0.02


def as_loss(value: float, direction: Direction) -> float:
    """The value turned so that smaller is better. Nothing else in the program knows what a direction means."""
    return -value if direction == "maximize" else value


class Metric(NamedTuple):
    """A metric's direction, its closed range, the task types that can report it (none: all), and how it is scored.

    score: from what is right and what was predicted, a value for each row in the same order (class ids, or numbers;
    where `generates`, texts that the model has written); None where the task computes the metric itself. packages:
    import names of what it needs, and extra: what to install to get them.
    """

    direction: Direction
    low: float
    high: float
    tasks: tuple[str, ...]
    score: Callable[[Sequence[Any], Sequence[Any]], float] | None = None
    generates: bool = False
    packages: tuple[str, ...] = ()
    extra: str = "automl-lora[text-metrics]"

    def missing(self, is_installed: Callable[[str], bool]) -> str:
        """What to say of packages that it needs and that are not installed, or ''."""
        missing = [package for package in self.packages if not is_installed(package)]
        return f"needs the package {' and '.join(missing)}; pip install '{self.extra}'" if missing else ""

    @property
    def is_bounded(self) -> bool:
        """Whether its range has two ends."""
        return math.isfinite(self.high - self.low)

    def loss(self, value: float) -> float:
        """The value turned so that smaller is better."""
        return as_loss(value, self.direction)

    def gain(self, value: float, over: float) -> float:
        """By how much `value` is better than `over`; negative if it is worse."""
        return self.loss(over) - self.loss(value)


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "accuracy": "automl.tasks.metrics:ACCURACY",
        "macro_f1": "automl.tasks.metrics:MACRO_F1",
        "mcc": "automl.tasks.metrics:MCC",
        "loss": "automl.tasks.metrics:LOSS",
        "perplexity": "automl.tasks.metrics:PERPLEXITY",
        "exact_match": "automl.tasks.metrics:EXACT_MATCH",
        "rouge_l": "automl.tasks.metrics:ROUGE_L",
        "rouge_1": "automl.tasks.text_metrics:ROUGE_1",
        "rouge_2": "automl.tasks.text_metrics:ROUGE_2",
        "bleu": "automl.tasks.text_metrics:BLEU",
        "chrf": "automl.tasks.text_metrics:CHRF",
        "squad_em": "automl.tasks.text_metrics:SQUAD_EM",
        "squad_f1": "automl.tasks.text_metrics:SQUAD_F1",
        "json_valid": "automl.tasks.text_metrics:JSON_VALID",
        "json_match": "automl.tasks.text_metrics:JSON_MATCH",
        "json_schema": "automl.tasks.text_metrics:JSON_SCHEMA",
        "preference_accuracy": "automl.tasks.metrics:PREFERENCE_ACCURACY",
        "margin": "automl.tasks.metrics:MARGIN",
        "kl": "automl.tasks.metrics:KL",
        "micro_f1": "automl.tasks.label_sets:MICRO_F1",
        "subset_accuracy": "automl.tasks.label_sets:SUBSET_ACCURACY",
        "entity_f1": "automl.tasks.tags:ENTITY_F1",
        "tag_accuracy": "automl.tasks.tags:TAG_ACCURACY",
        "mse": "automl.tasks.numbers:MSE",
        "rmse": "automl.tasks.numbers:RMSE",
        "mae": "automl.tasks.numbers:MAE",
        "r2": "automl.tasks.numbers:R2",
        "pearson": "automl.tasks.numbers:PEARSON",
        "spearman": "automl.tasks.numbers:SPEARMAN",
        "quadratic_kappa": "automl.tasks.numbers:QUADRATIC_KAPPA",
    },
    instance_of(Metric),
    families={"maximize": "automl.metric:_maximized", "minimize": "automl.metric:_minimized"},
)
"""Every metric the objective may be. `loss` is the mean per row (classification) or target token (text), in nats."""


def is_own(name: str) -> bool:
    """Whether it is a metric of the user's, `maximize:judge`. The name says what it is for; no code belongs to it."""
    return name.startswith(("maximize:", "minimize:"))


def _maximized(label: str) -> Metric:
    return Metric("maximize", -math.inf, math.inf, ())


def _minimized(label: str) -> Metric:
    return Metric("minimize", -math.inf, math.inf, ())


_NOISE_RELATIVE = 0.05
"""Noise of one value of a metric without an upper end, as a share of it: seeds differ by 3 to 10 % of a loss."""


def standard_error(metric: str, value: float, rows: int) -> float:
    """Standard error of one value: by the number of rows for a share of them, else _NOISE_RELATIVE of the value."""
    low, high = METRICS[metric].low, METRICS[metric].high
    if not METRICS[metric].is_bounded:
        return _NOISE_RELATIVE * abs(value)
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return (high - low) * math.sqrt(share * (1.0 - share) / rows)


def margin_mistake(margin: float, metric: str) -> str:
    """What is wrong with a difference of the metric that is not to matter; empty if nothing is.

    Of a metric with two ends it must be below half the range: a margin of 1 is likely meant in percent.
    """
    half = (METRICS[metric].high - METRICS[metric].low) / 2.0
    if 0.0 < margin < half:
        return ""
    return f"{margin:g} is no difference of {metric}: it must be above 0" + (
        f" and below {half:g}, in units of the metric" if math.isfinite(half) else " and finite"
    )


def practical_margin(metric: str, value: float) -> float:
    """Difference below which two values are as good as equal: 1 % of the metric's range, or 2 % of the value."""
    low, high = METRICS[metric].low, METRICS[metric].high
    return _MARGIN_BOUNDED * (high - low) if METRICS[metric].is_bounded else _MARGIN_RELATIVE * abs(value)
