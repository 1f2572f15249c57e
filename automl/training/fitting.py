"""A short training of some parameters of an adapted model, with the steps of a trial: AdamW, warm-up and clipping.

There is no dropout, so it is repeatable to the bit; nothing of it is saved on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from automl.lora import Hyperparameters
from automl.tasks.base import Batch, LossParts, Row
from automl.tasks.batches import batch_rows
from automl.training import optim
from automl.training.memory import halving
from automl.training.runtime import Runtime
from automl.trial import check_finite


def fit(
    model: nn.Module,
    parameters: optim.Parameters,
    runtime: Runtime,
    hyper: Hyperparameters,
    *,
    steps: int,
    seed: int,
    what: str,
    penalty: Callable[[], Tensor] | None = None,
    before_step: Callable[[int], None] | None = None,
) -> None:
    """Train these parameters of the model in place, in eval mode.

    hyper: of the optimizer, batch and schedule. seed: of the order of rows. what: a name for messages. penalty: what is
    minimised beside the loss of the task, (). before_step: called with the step's number, from 0; what it raises ends
    the training. Raises Diverged, OutOfMemory, DataError.
    """
    optimizer = optim.adamw(parameters, hyper)
    at_once, loss_of = hyper.batch_size, runtime.task.for_trial(hyper).loss
    for step in range(steps):
        if before_step is not None:
            before_step(step)
        numbers = batch_rows(seed, step, hyper.batch_size, len(runtime.train_rows))
        rows = [runtime.train_rows[number] for number in numbers]
        loss, at_once = halving(at_once, partial(_accumulate, model, runtime, optimizer, loss_of, rows), what=what)
        check_finite({"training loss": loss}, step + 1)
        if penalty is not None:
            torch.autograd.backward(penalty())
        optim.take_step(optimizer, parameters, hyper, step=step, steps=steps)


def _accumulate(
    model: nn.Module,
    runtime: Runtime,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[nn.Module, Batch], LossParts],
    rows: Sequence[Row],
    at_once: int,
) -> float:
    """Gradients of the mean loss over `rows`, `at_once` of them at a time; returns that loss."""
    optimizer.zero_grad(set_to_none=True)
    total, count = 0.0, 0
    for start in range(0, len(rows), at_once):
        with runtime.autocast():
            parts = loss_of(model, runtime.batch(rows[start : start + at_once]))
        torch.autograd.backward(parts.total)
        total, count = total + float(parts.total.detach()), count + parts.count
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad /= max(count, 1)
    return total / max(count, 1)
