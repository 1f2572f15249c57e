"""How many rows a trial needs: what a new space file begins with, and what is said of a trial that is short.

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
    """What a trial gets to see. batch_size: rows of a step. steps: of a full trial. length: as a file says it, in
    epochs, or in examples where no epochs are meant. meaning: of the length."""

    batch_size: int
    steps: int
    length: str
    meaning: str

    @property
    def examples(self) -> int:
        """Training rows that a full trial sees."""
        return self.steps * self.batch_size


def starting_budget(rows: int, classes: int, max_length: int) -> Budget:
    """Batch size and length of a trial to begin a search with.

    rows: for training, at least 1. classes: 0 if the task has none. max_length: tokens that a row has at most.
    """
    batch_size = max(1, min(_batch_size(rows), _TOKENS // max_length))
    wanted = max(_EPOCHS, LEAST_EXAMPLES * classes / rows)
    least = min(_MOST_EPOCHS, _FEWEST_STEPS * batch_size / rows)
    epochs = math.ceil(10 * max(wanted, least)) / 10
    steps = min(math.ceil(epochs * rows / batch_size), _MOST_STEPS)
    is_cut = epochs * rows > steps * batch_size
    length = f"examples: {steps * batch_size}" if is_cut else f"epochs: {epochs:g}"
    why = "; ".join(_meaning(steps, epochs, wanted, rows, classes=classes, batch_size=batch_size))
    return Budget(batch_size, steps, length, f"of a full trial, {steps:,} steps of {batch_size} rows{why}")


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


def _meaning(steps: int, epochs: float, wanted: float, rows: int, *, classes: int, batch_size: int) -> Iterator[str]:
    """Why so much: the passes over the rows, and what they are for where it is not three of them."""
    seen = steps * batch_size
    if seen >= rows:
        yield f": {seen / rows:.3g} passes over {rows:,} training rows"
    else:
        yield f": {seen:,} of {rows:,} training rows, enough to tell configurations apart"
    if seen < epochs * rows:
        yield f"{wanted:.3g} passes take {math.ceil(wanted * rows / batch_size):,} steps"
    elif wanted < epochs - 0.1:
        yield "as fewer steps teach little"
    elif wanted > _EPOCHS:
        yield f"{seen // classes:,} rows of each class"
