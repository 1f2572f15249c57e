"""The losses of all slots in one call of the model, for tasks whose loss is known to be a sum over rows.

A task of another kind, or a subclass with a loss of its own, is asked trial by trial instead.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from automl.tasks import causal, classification
from automl.tasks.base import Batch, Task
from automl.tasks.classification import Classification
from automl.tasks.completion import Completion
from automl.tasks.instruction import Instruction

RowLosses = Callable[[nn.Module, Batch], Tensor]
"""Sum of the losses of every row, (N,) float32. A batch of token targets is given as `causal.losses_by_row` says."""

_KNOWN: dict[object, RowLosses] = {
    Classification.loss: classification.losses_by_row,
    Completion.loss: causal.losses_by_row,
    Instruction.loss: causal.losses_by_row,
}


def row_losses(task: Task) -> RowLosses | None:
    """The losses by row that add up to the task's own loss; None if its loss is not one of the known ones."""
    return _KNOWN.get(type(task).loss)
