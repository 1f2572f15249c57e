"""Training rows of a mixture: which row of which part is drawn, so that every part has the share of its weight.

Rows lie on disk once, part after part. An epoch draws places, and a part has as many of them as its weight says: its
rows come up again and again, each as often as any other of the part or once more.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from automl.tasks.base import Row, Share
from automl.tasks.rows import RowView

LONGEST_EPOCH = 10
"""An epoch draws at most so many times the rows there are. Beyond, parts of small weight are not seen whole."""


def places_of(shares: Sequence[Share]) -> list[int]:
    """How many places of an epoch each part has: enough for all rows of every part, within `LONGEST_EPOCH`.

    The same as oversampling until all parts are exhausted (`interleave_datasets` with `all_exhausted`), drawn evenly.
    """
    rows = sum(share.rows for share in shares)
    whole = max(share.rows / share.weight for share in shares)
    epoch = min(whole, LONGEST_EPOCH * rows)
    return [max(1, math.floor(share.weight * epoch + 0.5)) for share in shares]


def mixture_notes(shares: Sequence[Share], names: Iterable[str], *, rows: str) -> list[str]:
    """A line for each part: its rows, its share of what is drawn, and how often an epoch sees each row.

    rows: what they are, such as `training rows`.
    """
    places = places_of(shares)
    epoch = sum(places)
    told = []
    for name, share, count in zip(names, shares, places, strict=True):
        times = f"an epoch of {epoch:,} draws sees each {count / share.rows:.3g} times"
        told.append(f"{name}: {share.rows:,} {rows}, {count / epoch:.1%} of what is trained on; {times}")
    return told


class _Part(NamedTuple):
    """start: number of its first row. order: its rows, in the order in which further draws fall on them."""

    start: int
    order: array[int]


class MixedRows(RowView):
    """The places of an epoch as rows. rows: of all parts, one after the other. seed: which rows come up once more."""

    def __init__(self, rows: Sequence[Row], shares: Sequence[Share], seed: str) -> None:
        self._rows = rows
        starts = accumulate((share.rows for share in shares), initial=0)
        self._parts = [
            _Part(start, _shuffled(share.rows, f"{seed}:{number}"))
            for number, (start, share) in enumerate(zip(starts, shares, strict=False))
        ]
        self._firsts = list(accumulate(places_of(shares), initial=0))

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def drawn_from(self) -> Sequence[Row]:
        """The rows of all parts, each once."""
        return self._rows

    def number(self, place: int) -> int:
        """Which of the rows of all parts lies at a place."""
        number = bisect_right(self._firsts, place) - 1
        part = self._parts[number]
        within = (place - self._firsts[number]) % len(part.order)
        return part.start + part.order[within]

    def _row(self, place: int) -> Row:
        return self._rows[self.number(place)]


def _shuffled(rows: int, seed: str) -> array[int]:
    order = array("q", range(rows))
    random.Random(seed).shuffle(order)  # noqa: S311  # an order, not a secret
    return order
