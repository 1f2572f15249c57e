"""What held-out data says of each module's update: the sign that sensitivity on training data does not have.

To first order the loss on held-out rows rises by -<ΔW, G> = -trace(Bᵀ ∂L/∂B) if a module's update is removed. A value
that is not above 0 is no evidence that the module is of use, and one within its error of 0 is weak evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch

from automl.importance.sensitivity import Factors, gradient
from automl.trial import ModuleImportance

RowT = TypeVar("RowT")

HELD_OUT_ROWS = 256
"""Most evaluation rows that are looked at, the first ones."""

HELD_OUT_BATCH = 16
"""Most rows of one batch; the error is estimated from the spread over batches."""

SHARE_OF_TRAINING = 0.01
"""Rows that are looked at for each row a trial has trained on: what it costs, as both go forward and backward."""

_FEWEST_BATCHES = 4


class MeanEffect(NamedTuple):
    """A mean and its standard error; None if it cannot be told."""

    mean: float
    error: float | None


def affordable_rows(trained: int) -> int:
    """How many evaluation rows are looked at for a trial that has trained on so many; 0 if too few for an error."""
    rows = min(HELD_OUT_ROWS, int(SHARE_OF_TRAINING * trained))
    return rows if rows >= _FEWEST_BATCHES else 0


def in_batches(rows: Sequence[RowT]) -> list[Sequence[RowT]]:
    """Batches of HELD_OUT_BATCH rows, or of fewer if that would make less than four of them."""
    size = max(1, min(HELD_OUT_BATCH, len(rows) // _FEWEST_BATCHES))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def removal_effects(factors: Sequence[Factors]) -> list[float]:
    """-<ΔW, G> of every module for the gradients of one batch."""
    dots = [(item.b.detach().double() * gradient(item).double()).sum() for item in factors]
    return torch.stack(dots).neg().tolist() if dots else []


def estimates(batches: Sequence[Sequence[float]]) -> list[MeanEffect]:
    """Mean of every column and its standard error. batches: a row of equally many values for each."""
    return [_estimate(column) for column in zip(*batches, strict=True)]


def with_held_out(
    importances: Sequence[ModuleImportance], modules: Sequence[str], batches: Sequence[Sequence[float]]
) -> tuple[ModuleImportance, ...]:
    """The importances with what `removal_effects` found for each batch. modules: paths of its columns.

    Unchanged if anything is not finite.
    """
    if not batches or not all(math.isfinite(value) for batch in batches for value in batch):
        return tuple(importances)
    found = dict(zip(modules, estimates(batches), strict=True))
    return tuple(
        replace(module, held_out=found[module.module].mean, held_out_error=found[module.module].error)
        for module in importances
    )


def _estimate(values: Sequence[float]) -> MeanEffect:
    number = len(values)
    mean = math.fsum(values) / number
    if number == 1:
        return MeanEffect(mean, None)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return MeanEffect(mean, math.sqrt(squares / (number * (number - 1))))
