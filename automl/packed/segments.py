"""Segments: the rows of a forward pass by adapter, one by one or as a pack of equal shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from automl.packed import masks
from automl.packed.adapter import Adapter
from automl.packed.bank import Bank


class Segment(NamedTuple):
    """Rows [start, stop) of the batch belong to this adapter. tokens: in its own longest row, padding follows.

    is_training: whether dropout masks are drawn. first: number of the first of these rows in the batch of the step.
    """

    adapter: Adapter
    start: int
    stop: int
    tokens: int
    is_training: bool = True
    first: int = 0


class Pack:
    """Segments of a bank with equal numbers of rows, described by tensors alone, so that the adapters may change.

    rows: in the bank, (K,) int64.
    rows_each: in the batch, for each segment.
    scaling: for the low-rank updates, divided by 1 - dropout, (K, 1, 1).
    seeds, steps, first: what names the dropout masks (`automl.packed.masks`), (K,) int32.
    limits: largest values that they keep, (K, 1, 1, 1) int32.
    is_dropping: whether any of these slots has dropout.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        rows: Tensor,
        rows_each: int,
        scaling: Tensor,
        seeds: Tensor,
        steps: Tensor,
        first: Tensor,
        limits: Tensor,
        is_dropping: bool,
    ) -> None:
        self.bank = bank
        self.rows = rows
        self.rows_each = rows_each
        self.scaling = scaling
        self.is_dropping = is_dropping
        self._named = seeds, steps, first
        self._limits = limits
        self._widest = max(stack.a.shape[-1] for stack in bank.stacks.values())
        self._bits: dict[tuple[int, int], Tensor] = {}

    @property
    def segments(self) -> int:
        """Number of segments."""
        return len(self.rows)

    def mask(self, path: str, x: Tensor, per_row: int) -> Tensor | None:
        """Which elements of a layer's input are kept, bool like x; None if nobody drops any. x: (K, B * per_row, I)."""
        if not self.is_dropping:
            return None
        count = x.shape[1] // per_row
        if (count, per_row) not in self._bits:
            self._bits[count, per_row] = masks.bits(*self._named, (count, per_row, self._widest))
        drawn = self._bits[count, per_row][..., : x.shape[-1]]
        return masks.layer_mask(drawn, path, self._limits).view(x.shape)

    def forget_bits(self) -> None:
        """Forget the masks between two passes: the next one has masks of its own."""
        self._bits.clear()


class Segmentation:
    """The segments of the forward pass that is under way, read by every packed layer; empty outside of one.

    pack: segments of a bank instead of `segments`.
    """

    def __init__(self) -> None:
        self.segments: Sequence[Segment] = ()
        self.pack: Pack | None = None

    @property
    def rows(self) -> int:
        """Rows of the batch under way; 1 for a single adapter that all rows belong to, however many there are."""
        return self.pack.segments * self.pack.rows_each if self.pack is not None else self.segments[-1].stop

    @contextmanager
    def divided(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Rows belong to these segments inside the block."""
        before, self.segments = self.segments, segments
        try:
            yield
        finally:
            self.segments = before

    @contextmanager
    def packed(self, pack: Pack) -> Iterator[None]:
        """Rows belong to the segments of this pack, in equal shares, inside the block."""
        self.pack = pack
        try:
            yield
        finally:
            self.pack = None
            pack.forget_bits()

    @contextmanager
    def alone(self, adapter: Adapter | None) -> Iterator[None]:
        """All rows belong to this adapter inside the block, without dropout; None is the bare backbone."""
        with self.divided(() if adapter is None else (Segment(adapter, 0, 1, 0, is_training=False),)):
            yield
