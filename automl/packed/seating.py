"""Who sits where: the rows of a forward pass, grouped by adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from automl.packed.adapter import Adapter


class Seat(NamedTuple):
    """Rows [start, stop) of the batch belong to this adapter. tokens: of its own longest row, padding follows.

    is_training: whether dropout masks are drawn.
    """

    adapter: Adapter
    start: int
    stop: int
    tokens: int
    is_training: bool = True


class Seating:
    """The seats of the forward pass that is under way, read by every packed layer; empty outside of one.

    sole: the adapter that all rows belong to, however many there are.
    """

    def __init__(self) -> None:
        self.seats: Sequence[Seat] = ()
        self.sole: Adapter | None = None

    def seats_of(self, rows: int) -> Sequence[Seat]:
        """The seats of a batch of this many rows. Raises ValueError if they do not add up."""
        if self.sole is not None:
            return (Seat(self.sole, 0, rows, 0, is_training=False),)
        seated = self.seats[-1].stop if self.seats else 0
        if seated not in (0, rows):
            raise ValueError(f"a layer got {rows} rows for {seated} seats: the model mixes or splits rows")
        return self.seats

    @contextmanager
    def seated(self, seats: Sequence[Seat]) -> Iterator[None]:
        """Rows belong to these seats inside the block."""
        self.seats = seats
        try:
            yield
        finally:
            self.seats = ()

    @contextmanager
    def alone(self, adapter: Adapter | None) -> Iterator[None]:
        """All rows belong to this adapter inside the block, without dropout; None is the bare backbone."""
        self.sole = adapter
        try:
            yield
        finally:
            self.sole = None
