"""Short rows joined into blocks, so that little of a batch is padding, and what keeps the rows of a block apart.

A block says the position of each token in its own row. A 0 begins a row, pads are rows of their own: so positions alone
tell which tokens may see each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import torch

from automl.tasks.base import IGNORED, Batch, Row

POSITIONS = "position_ids"
"""Key of a block's positions, one for each token; counted from 0 in each row of it."""


def join_rows(rows: Sequence[Row], most: int) -> list[Row]:
    """Blocks of at most `most` tokens, each row whole in one of them; a longer row is a block alone.

    Best fit, the longest row first: it goes where the least room is left that is enough. Source: Ding et al. 2024,
    "Fewer Truncations Improve Language Modeling", section 3.2. Blocks are in the order in which they were begun.
    """
    blocks: list[list[Row]] = []
    rooms: list[tuple[int, int]] = []  # what is left of a block, and its number; ascending
    for row in sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True):
        length = len(row["input_ids"])
        place = bisect_left(rooms, (length, 0))
        left, number = rooms.pop(place) if place < len(rooms) else (most, len(blocks))
        if number == len(blocks):
            blocks.append([])
        blocks[number].append(row)
        if left > length:
            insort(rooms, (left - length, number))
    return [_block(block) for block in blocks]


def _block(rows: Sequence[Row]) -> Row:
    """The rows one after the other. The first token of each is predicted from nothing."""
    return {
        "input_ids": list(chain.from_iterable(row["input_ids"] for row in rows)),
        "labels": list(chain.from_iterable((IGNORED, *row["labels"][1:]) for row in rows)),
        POSITIONS: list(chain.from_iterable(range(len(row["input_ids"])) for row in rows)),
    }


def rows_of_block(row: Row) -> Iterator[Mapping[str, Any]]:
    """The rows that were joined into a block; a row of another kind is itself."""
    if POSITIONS not in row:
        yield row
        return
    positions = row[POSITIONS]
    starts = [place for place, position in enumerate(positions) if position == 0]
    for start, end in pairwise([*starts, len(positions)]):
        yield {name: row[name][start:end] for name in ("input_ids", "labels")}


def attention_of(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Arguments by which a language model, without any wrapper, attends within rows: padding, or what blocks allow."""
    if POSITIONS not in batch:
        return {"attention_mask": batch["attention_mask"]}
    positions = batch[POSITIONS]  # (N, T)
    allowed = _allowed(positions)[:, None]  # (N, 1, T, T)
    if getattr(model.config, "_attn_implementation", "") != "sdpa":  # which adds masks to the scores
        allowed = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    return {"attention_mask": allowed, POSITIONS: positions}


def _allowed(positions: torch.Tensor) -> torch.Tensor:
    """Which token (N, T, here) may see which (N, here, T): itself and those before it in its own row."""
    rows = (positions == 0).cumsum(dim=1)
    is_before = torch.ones(2 * positions.shape[1:], dtype=torch.bool, device=positions.device).tril()
    return (rows[:, :, None] == rows[:, None, :]) & is_before
