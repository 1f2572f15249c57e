"""A little training of a cut adapter and its head, in place, so that what is left makes up for what was cut.

Steps are those of a trial, with AdamW, warm-up and clipping; there is no dropout, so a cut's recovery is repeatable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from automl.lora import Hyperparameters
from automl.tasks.base import Batch, LossParts, Row
from automl.tasks.batches import batch_rows
from automl.training import optim
from automl.training.cut import Trained, TurnedAdapter
from automl.training.memory import halving
from automl.training.runtime import Runtime
from automl.trial import check_finite


def recover(
    adapter: TurnedAdapter, runtime: Runtime, ranks: Sequence[int], hyper: Hyperparameters, *, steps: int, seed: int
) -> Trained:
    """Cut to these ranks and train; the model is left trained until it is cut again. Returns copies of its tensors.

    hyper: of the optimizer, batch and schedule. seed: of the order of rows. Raises Diverged, OutOfMemory, DataError.
    """
    parameters = adapter.trainable(ranks)
    optimizer = optim.adamw(parameters, hyper)
    at_once, loss_of = hyper.batch_size, runtime.task.for_trial(hyper).loss
    for step in range(steps):
        numbers = batch_rows(seed, step, hyper.batch_size, len(runtime.train_rows))
        rows = [runtime.train_rows[number] for number in numbers]
        loss, at_once = halving(
            at_once, partial(_accumulate, adapter, runtime, optimizer, loss_of, rows), what="recovery"
        )
        check_finite({"training loss": loss}, step + 1)
        optim.take_step(optimizer, parameters, hyper, step=step, steps=steps)
    return adapter.trained()


def _accumulate(
    adapter: TurnedAdapter,
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
            parts = loss_of(adapter.model, runtime.batch(rows[start : start + at_once]))
        torch.autograd.backward(parts.total)
        total, count = total + float(parts.total.detach()), count + parts.count
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad /= max(count, 1)
    return total / max(count, 1)
