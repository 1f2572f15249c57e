"""Rows out of mapped memory, at the cost of a slice: `datasets` itself takes a hundred times as long for one row."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from automl.tasks.base import Row


class _Column(NamedTuple):
    """One column of one record batch, without a copy: row i of a list column is values[bounds[i] : bounds[i + 1]]."""

    values: npt.NDArray[Any]
    bounds: npt.NDArray[np.int32] | None  # None: one number per row


class RowView(Sequence[Row]):
    """Rows that are made when they are read: all that a view has to say is how many there are, and one of them."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(place)

    @abstractmethod
    def _row(self, place: int) -> Row:
        """The row at a place from 0 to below the length."""


class MappedRows(RowView):
    """The rows of an Arrow table of numbers and lists of them; pages are shared by all processes."""

    def __init__(self, table: Any) -> None:
        batches = table.to_batches()
        sizes = [int(batch.num_rows) for batch in batches]
        self._starts = list(itertools.accumulate(sizes, initial=0))  # and the number of rows as its last
        self._batches = [_columns(batch) for batch in batches]

    def __len__(self) -> int:
        return self._starts[-1]

    def _row(self, place: int) -> Row:
        number = bisect_right(self._starts, place) - 1
        within = place - self._starts[number]
        return {name: _value(column, within) for name, column in self._batches[number].items()}


def _columns(batch: Any) -> dict[str, _Column]:
    found = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        is_list = hasattr(array, "offsets")
        values = array.values if is_list else array
        found[name] = _Column(values.to_numpy(), array.offsets.to_numpy() if is_list else None)
    return found


def _value(column: _Column, within: int) -> Any:
    if column.bounds is None:
        return column.values[within].item()
    return column.values[column.bounds[within] : column.bounds[within + 1]].tolist()
