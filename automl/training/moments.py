"""What the inputs of adapted modules are like on some rows, as far as their low-rank updates see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from automl.methods.base import LowRank
from automl.tasks.base import Batch


@torch.no_grad()
def moments_of(
    modules: Sequence[nn.Module],
    updates: Sequence[LowRank],
    batches: Iterable[Batch],
    forward: Callable[[Batch], object],
) -> list[Tensor]:
    """E[A x (A x)ᵀ] of every module, each (r, r) float64, over the real tokens of these batches; forward passes only.

    modules: those of the updates, in their order.
    """
    sums = [
        torch.zeros(len(update.a), len(update.a), dtype=torch.float64, device=update.a.device) for update in updates
    ]
    counts = [0] * len(updates)
    real = torch.empty(0)

    def watch(index: int) -> Any:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0][real] if inputs[0].shape[:-1] == real.shape else inputs[0].flatten(0, -2)
            seen = (x.float() @ updates[index].a.float().mT).double()
            sums[index] += seen.mT @ seen
            counts[index] += len(seen)

        return look

    with ExitStack() as watching:
        for index, module in enumerate(modules):
            watching.callback(module.register_forward_pre_hook(watch(index)).remove)
        for batch in batches:
            real = batch["attention_mask"].bool()
            forward(batch)
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]  # an expert may see nothing
