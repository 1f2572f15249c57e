"""What the model as it was makes of rows: log-probabilities of their tokens to learn, computed once and kept in a file.

The file lies beside the prepared data and is named after everything the numbers depend on, so all trials, workers and
later runs share it. It holds a float32 for each token, NaN until its row was first asked for. Each row is computed
alone: its numbers depend on no other row, and only those rows are computed that trials draw.
"""

from __future__ import annotations

import copy
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from automl.errors import ResourceError
from automl.tasks.base import IGNORED, Batch, Row
from automl.tasks.causal import target_losses
from automl.tasks.mixture import MixedRows
from automl.tasks.rows import RowView
from automl.watchdog import beat

LOGPS = "reference_logps"
"""Key of a row's log-probabilities, one for each token; 0 where no loss is."""

Numbers = npt.NDArray[np.float32]


class ReferredRows(RowView):
    """Rows with `reference_logps`. compute: a row's, (tokens,) float32; called while the file is locked.

    A row that a mixture has at several places is computed once.

    Reading a row computes what is missing, so the model must be as it was then, unless the row was read before.
    """

    def __init__(self, rows: Sequence[Row], file: Path, compute: Callable[[Row], Numbers]) -> None:
        """Raises ResourceError if the file cannot be made."""
        self._rows = rows
        self._compute = compute
        self._file = file
        self._mixed = rows if isinstance(rows, MixedRows) else None
        each = self._mixed.drawn_from if self._mixed else rows
        self._bounds = list(accumulate((len(row["input_ids"]) for row in each), initial=0))
        try:
            _make(file, self._bounds[-1])
            size = self._bounds[-1]  # an empty file cannot be mapped
            self._numbers = np.memmap(file, np.float32, "r+") if size else np.empty(0, np.float32)
        except OSError as error:
            raise ResourceError(f"reference {file} cannot be kept: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, place: int) -> Row:
        row = self._rows[place]
        return {**row, LOGPS: self._of(place, row)}

    def fill(self, places: Iterable[int]) -> None:
        """Compute the rows at these places, those that are missing."""
        for place in places:
            if _is_missing(self._part(place)):
                self._of(place, self._rows[place])

    def _part(self, place: int) -> Numbers:
        number = self._mixed.number(place) if self._mixed else place
        return self._numbers[self._bounds[number] : self._bounds[number + 1]]

    def _of(self, place: int, row: Row) -> Numbers:
        part = self._part(place)
        if _is_missing(part):
            with _alone(self._file):
                if _is_missing(part):  # nobody else has computed it meanwhile
                    beat()
                    part[:] = self._compute(row)
        return np.array(part)


def unreferred(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows without what the model makes of them, which is not computed."""
    return rows._rows if isinstance(rows, ReferredRows) else rows


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Inside the block no other process is in one of this file."""
    with file.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def untouched(model: nn.Module) -> nn.Module:
    """A model of modules of its own that shares all weights: adapters put on the other one do not reach it."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()


def token_logps(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Log-probability of every token with loss, in its place, (N, T) float32; 0 elsewhere."""
    is_target = targets_of(batch)
    found = torch.zeros(is_target.shape, dtype=torch.float32, device=is_target.device)
    return found.masked_scatter(is_target, -target_losses(model, batch))


def targets_of(batch: Batch) -> torch.Tensor:
    """Which tokens carry loss, (N, T) bool; never the first one, which is predicted from nothing."""
    is_target = batch["labels"] != IGNORED
    is_target[:, 0] = False
    return is_target


def _is_missing(part: Numbers) -> bool:
    return bool(np.isnan(part).any())


def _make(file: Path, size: int) -> None:
    """Make the file of so many numbers, none of them known, unless it is there."""
    if file.exists() and file.stat().st_size == size * 4:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with os.fdopen(handle, "wb") as beside:
        np.full(size, np.nan, np.float32).tofile(beside)
    try:
        os.link(draft, file)  # the first one stays: others may have it open already
    except FileExistsError:
        if file.stat().st_size != size * 4:
            Path(draft).replace(file)
    finally:
        Path(draft).unlink(missing_ok=True)
