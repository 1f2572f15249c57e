"""How many rows and steps a trial needs: what a new space file begins with, and what is said of a trial that is short.

Three passes over the rows are what tables of LoRA trainings use for data sets of this kind; few rows are seen more
often, up to twenty times, as no configuration can be told from another in fewer than about 100 steps. Many rows are
seen in part: on a tenth of the data configurations rank much as on all of it (Spearman .87 to .94, arXiv 2602.11171).
The best batch size grows with the data and hardly with rank or model (arXiv 2602.09492); LoRA suffers from large ones
(LoRA Without Regret), so it ends at 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

LEAST_EXAMPLES = 20
"""Examples of each class that a trial should see: with fewer it can hardly tell many classes apart."""

_EPOCHS = 3
_MOST_EPOCHS = 20
_FEWEST_STEPS = 100
_MOST_STEPS = 1000
_TOKENS = 16_384
"""Most tokens of a step: longer rows come in smaller batches."""
_BATCHES = ((1_000, 8), (3_000, 16))
"""Rows below which a batch has so many; 32 from there."""
_LARGEST_BATCH = 32


class Budget(NamedTuple):
    """What a trial gets to see. batch_size: rows of a step. steps: of a full trial. meaning: of the steps."""

    batch_size: int
    steps: int
    meaning: str


def starting_budget(rows: int, classes: int, max_length: int) -> Budget:
    """Batch size and steps to begin a search with.

    rows: for training, at least 1. classes: 0 if the task has none. max_length: tokens that a row has at most.
    """
    batch_size = max(1, min(_batch_size(rows), _TOKENS // max_length))
    epoch = rows / batch_size
    enough = math.ceil(max(_EPOCHS * rows, LEAST_EXAMPLES * classes) / batch_size)
    least = min(_FEWEST_STEPS, math.ceil(_MOST_EPOCHS * epoch))
    steps = min(max(enough, least), _MOST_STEPS)
    return Budget(batch_size, steps, "; ".join(_meaning(steps, enough, rows, classes, batch_size)))


def coverage_advice(rows: int, classes: int, *, steps: int, batch_size: int) -> list[str]:
    """One line if a trial sees less than one epoch, or too few examples of each class; may be empty.

    rows: for training. classes: 0 if the task has none. batch_size: the smallest that a trial may have.
    """
    seen = steps * batch_size
    per_class = seen / classes if classes else LEAST_EXAMPLES
    if seen >= rows and per_class >= LEAST_EXAMPLES:
        return []
    enough = math.ceil(max(_EPOCHS * rows, LEAST_EXAMPLES * classes) / batch_size)
    of_each = f", about {per_class:.1f} of each of {classes:,} classes" if classes else ""
    wanted = f" and {LEAST_EXAMPLES} of each class" if classes else ""
    larger = f" (or {math.ceil(enough * batch_size / _LARGEST_BATCH):,} of 32)" if batch_size < _LARGEST_BATCH else ""
    return [
        f"a trial of {steps:,} steps of {batch_size} rows sees {seen:,} of {rows:,} training rows"
        f" ({seen / rows:.1f} epochs){of_each}; {_EPOCHS} epochs{wanted} take"
        f" {enough:,} steps{larger}"
    ]


def _batch_size(rows: int) -> int:
    return next((size for below, size in _BATCHES if rows < below), _LARGEST_BATCH)


def _meaning(steps: int, enough: int, rows: int, classes: int, batch_size: int) -> Iterator[str]:
    seen, usual = steps * batch_size, math.ceil(_EPOCHS * rows / batch_size)
    if seen >= rows:
        yield f"of a full trial: {seen / rows:.3g} passes over {rows:,} training rows"
    else:
        yield f"of a full trial: {seen:,} of {rows:,} training rows, enough to tell configurations apart"
    if steps < enough:
        yield f"{_EPOCHS} passes take {usual:,}"
    elif steps > max(enough, usual):
        yield "as fewer steps teach little"
    elif steps > usual:
        yield f"{seen // classes:,} rows of each class"
