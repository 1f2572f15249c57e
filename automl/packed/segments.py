"""Segments: the rows of a forward pass by adapter, one by one or as a pack of all.

Legend: K segments, B places of each, N rows of the batch, M places times tokens, I, O features, R padded rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
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


class Spread(NamedTuple):
    """Where the rows of segments with unequal numbers of them are: as in places of equal numbers, some of them empty.

    rows: of the batch, for every place of every segment, (K * B,) int64; an empty one has its segment's first row.
    places: of every row of the batch, (N,) int64. is_taken: (K, B) float32, 0 for empty places.
    """

    rows: Tensor
    places: Tensor
    is_taken: Tensor


class Pack:
    """Segments of a bank, described by tensors alone, so that the adapters may change.

    rows: in the bank, (K,) int64.
    rows_each: B, the most rows of the batch that a segment has.
    scaling: for the low-rank updates, divided by 1 - dropout, (K, 1, 1).
    seeds, steps, first: what names the dropout masks (`automl.packed.masks`), (K,) int32.
    limits: largest values that they keep, (K, 1, 1, 1) int32.
    is_dropping: whether any of these slots has dropout.
    spread: None if all segments have B rows, in order.
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
        spread: Spread | None = None,
    ) -> None:
        self.bank = bank
        self.rows = rows
        self.rows_each = rows_each
        self.is_dropping = is_dropping
        self._scaling = scaling
        self._spread = spread
        self._named = seeds, steps, first
        self._limits = limits
        self._widest = max(stack.a.shape[-1] for stack in bank.stacks.values())
        self._bits: dict[tuple[int, int], Tensor] = {}
        self._scalings: dict[int, Tensor] = {}

    @classmethod
    def without_dropout(cls, bank: Bank, places: Sequence[tuple[int, float]], *, rows_each: int) -> Pack:
        """Segments of equal size that are measured. places: row in the bank and scaling of each."""
        device = bank.device
        rows, scaling = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
        unused = torch.zeros(len(places), dtype=torch.int32, device=device)
        return cls(
            bank,
            rows=rows,
            rows_each=rows_each,
            scaling=scaling.float().view(-1, 1, 1),
            seeds=unused,
            steps=unused,
            first=unused,
            limits=unused.view(-1, 1, 1, 1),
            is_dropping=False,
        )

    @property
    def segments(self) -> int:
        """Number of segments."""
        return len(self.rows)

    @property
    def batch_rows(self) -> int:
        """Rows of the batch."""
        return self.segments * self.rows_each if self._spread is None else len(self._spread.places)

    def by_segment(self, x: Tensor) -> Tensor:
        """(N * tokens, I) of the batch as (K, B * tokens, I). An empty place has a row of its own segment.

        So a row that is not a number stays among its own, whatever empty places are multiplied by.
        """
        if self._spread is None:
            return x.view(self.segments, -1, x.shape[-1])
        rows = x.view(self.batch_rows, -1).index_select(0, self._spread.rows)
        return rows.view(self.segments, -1, x.shape[-1])

    def by_row(self, y: Tensor) -> Tensor:
        """What `by_segment` undoes: (K, B * tokens, O) as (N * tokens, O). Empty places are left out."""
        if self._spread is None:
            return y.reshape(-1, y.shape[-1])
        places = y.reshape(self.segments * self.rows_each, -1).index_select(0, self._spread.places)
        return places.view(-1, y.shape[-1])

    def totals(self, losses: Tensor) -> Tensor:
        """Sums of the losses of the rows, (N,), by segment, (K,)."""
        if self._spread is None:
            return losses.view(self.segments, -1).sum(dim=1)
        own = losses.index_select(0, self._spread.rows).view(self.segments, -1)
        return own.where(self._spread.is_taken > 0, 0.0).sum(dim=1)

    def add_to(self, y: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the products (K, M, R) x (K, R, O) of the segments to the rows y, (N * tokens, O), in place."""
        if self._spread is None:
            self.by_segment(y).baddbmm_(left, right)
        else:
            y.add_(self.by_row(torch.bmm(left, right)))

    def scaling(self, places: int) -> Tensor:
        """The scaling of the updates, to multiply with (K, places, R): 0 in places that are empty."""
        if self._spread is None:
            return self._scaling
        if places not in self._scalings:
            each = self._scaling.squeeze(-1) * self._spread.is_taken  # (K, B)
            self._scalings[places] = each.repeat_interleave(places // self.rows_each, dim=1).unsqueeze(-1)
        return self._scalings[places]

    def mask(self, path: str, x: Tensor, per_row: int) -> Tensor | None:
        """Which elements of a layer's input are kept, bool like x; None if nobody drops any. x: (K, B * per_row, I)."""
        if not self.is_dropping:
            return None
        count = x.shape[1] // per_row
        if (count, per_row) not in self._bits:
            self._bits[count, per_row] = masks.bits(*self._named, (count, per_row, self._widest))
        drawn = self._bits[count, per_row][..., : x.shape[-1]]
        return masks.layer_mask(drawn, path, self._limits).view(x.shape)

    def forget(self) -> None:
        """Forget masks and scalings between two passes: the next one has its own."""
        self._bits.clear()
        self._scalings.clear()


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
        return self.pack.batch_rows if self.pack is not None else self.segments[-1].stop

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
        """Rows belong to the segments of this pack inside the block."""
        self.pack = pack
        try:
            yield
        finally:
            self.pack = None
            pack.forget()

    @contextmanager
    def alone(self, adapter: Adapter | None) -> Iterator[None]:
        """All rows belong to this adapter inside the block, without dropout; None is the bare backbone."""
        with self.divided(() if adapter is None else (Segment(adapter, 0, 1, 0, is_training=False),)):
            yield
