"""Padding of tokenised rows to one rectangle, and numbers of many batches in one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from automl.tasks.base import IGNORED, Batch, Row
from automl.tasks.joining import POSITIONS


def pad_inputs(rows: Sequence[Row], pad_id: int) -> Batch:
    """What a model reads of rows, padded on the right to the longest of them; int64 on the CPU.

    input_ids, attention_mask and, where rows have them, token_type_ids are (N, T). The mask comes from lengths: pad may
    be the same token as end-of-text.
    """
    ids = [row["input_ids"] for row in rows]
    batch = {"input_ids": _rectangle(ids, pad_id), "attention_mask": _rectangle([[1] * len(row) for row in ids], 0)}
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = _rectangle([row["token_type_ids"] for row in rows], 0)
    return batch


def pad_rows(rows: Sequence[Row], pad_id: int) -> Batch:
    """Rows padded as by `pad_inputs`, and their labels; all tensors on the CPU.

    reference, where a row has one, is (N, R) padded with IGNORED; position_ids of blocks are (N, T). labels are (N, T)
    padded with IGNORED if they are lists, else (N,); int64, or float64 if they are real numbers.
    """
    batch = pad_inputs(rows, pad_id)
    if any(row.get("reference") for row in rows):
        batch["reference"] = _rectangle([row["reference"] for row in rows], IGNORED)
    if POSITIONS in rows[0]:
        batch[POSITIONS] = _rectangle([row[POSITIONS] for row in rows], 0)
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        batch["labels"] = _rectangle(labels, IGNORED)
    else:
        is_real = isinstance(labels[0], float)
        batch["labels"] = torch.tensor(labels, dtype=torch.float64 if is_real else torch.long)
    return batch


def _rectangle(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *([filler] * (width - len(row)))] for row in rows], dtype=torch.long)  # (N, T)


def columns(judged: Sequence[Sequence[torch.Tensor]]) -> list[list[Any]]:
    """Each tensor of what was judged of batches, for all batches: one below the other, as numbers."""
    return [torch.cat(parts).tolist() for parts in zip(*judged, strict=True)]
