"""Whether a model keeps joined rows apart, found out on rows of the data before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from automl.errors import ModelError, is_out_of_memory
from automl.models.calling import first_line
from automl.tasks.base import Row
from automl.tasks.causal import target_losses
from automl.tasks.collate import pad_rows
from automl.tasks.joining import join_rows, rows_of_block

_MOST_TOKENS = 64  # of each row that is looked at
_LOOKED_AT = 256
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_LOW_TOLERANCE = 0.1
"""Largest difference of the loss of a token, in nats, where weights have few bits: sums in another order."""


def check_joined(model: nn.Module, rows: Sequence[Row], pad_id: int) -> None:
    """Raise ModelError if a row's losses change by another row before it in a block, or blocks cannot be read.

    rows: blocks.
    """
    pair = _pair(rows)
    if pair is None:
        return
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        apart = torch.cat([_losses(model, row, pad_id, device) for row in pair])
        joined = _losses_of_block(model, join_rows(pair, 2 * _MOST_TOKENS)[0], pad_id, device)
    model.train(was_training)
    difference = float((joined - apart).abs().max())
    if not difference <= _TOLERANCE.get(apart.dtype if _is_exact(model) else torch.bfloat16, _LOW_TOLERANCE):
        raise _refusal(model, f"lets joined rows see each other (losses of tokens differ by {difference:.2g} nats)")


def _is_exact(model: nn.Module) -> bool:
    return next(model.parameters()).dtype in _TOLERANCE


def _pair(rows: Sequence[Row]) -> list[Mapping[str, Any]] | None:
    """Two rows of one block, the longer one first, as they are joined; None if no block that is looked at has two."""
    for block in islice(rows, _LOOKED_AT):
        found = [{name: values[:_MOST_TOKENS] for name, values in row.items()} for row in rows_of_block(block)]
        if len(found) > 1:
            return sorted(found[:2], key=lambda row: len(row["input_ids"]), reverse=True)
    return None


def _losses_of_block(model: nn.Module, block: Row, pad_id: int, device: torch.device) -> torch.Tensor:
    try:
        return _losses(model, block, pad_id, device)
    except Exception as error:  # whatever a model raises that expects another mask
        if is_out_of_memory(error):
            raise
        raise _refusal(model, f"cannot read joined rows ({first_line(error)})") from error


def _refusal(model: nn.Module, what: str) -> ModelError:
    advice = "leave short_texts: join out, which is for models of attention alone"
    return ModelError(f"{type(model).__name__} {what}; {advice}")


def _losses(model: nn.Module, row: Row, pad_id: int, device: torch.device) -> torch.Tensor:
    batch = {name: tensor.to(device) for name, tensor in pad_rows([row], pad_id).items()}
    return target_losses(model, batch)
