"""What the inputs of adapted modules are like on some rows, as far as their low-rank updates see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from automl.methods.base import LowRank
from automl.tasks.base import IGNORED, Batch


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
    real: dict[torch.Size, Tensor] = {}

    def watch(index: int) -> Any:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            of_these = real.get(inputs[0].shape[:-1])
            x = inputs[0].flatten(0, -2) if of_these is None else inputs[0][of_these]
            seen = (x.float() @ updates[index].a.float().mT).double()
            sums[index] += seen.mT @ seen
            counts[index] += len(seen)

        return look

    with ExitStack() as watching:
        for index, module in enumerate(modules):
            watching.callback(module.register_forward_pre_hook(watch(index)).remove)
        for batch in batches:
            real = _real(batch)
            forward(batch)
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]  # an expert may see nothing


def _real(batch: Batch) -> dict[torch.Size, Tensor]:
    """Which tokens are no padding, by the shape of what is read: the text, and a target that a decoder reads apart."""
    labels, mask = batch.get("labels"), batch["attention_mask"].bool()
    targets = {} if labels is None or labels.dim() != 2 else {labels.shape: labels != IGNORED}
    return {**targets, mask.shape: mask}
