"""Cross-entropy on what a frozen layer says, and its gradient, in one pass over a few rows at a time.

The output over a vocabulary is the largest tensor of a step, and four of its size are there if autograd makes the
gradient: it, its logarithms, and two gradients. A frozen output layer needs no gradient, and that of its input is known
as soon as the logarithms are: dL/dx = (softmax(x Wᵀ) - onehot(t)) W for each row, times whatever gradient the loss of
the row gets. So all that is kept of a row is as wide as its input. Legend: M rows, I input features, V outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from automl.models.activations import ROWS_AT_ONCE
from automl.packed.kernels import Kernel


def token_losses(kernel: Kernel, x: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every row, (M,) float32. x: (M, I) in the kernel's type, targets: (M,) of 0 to V - 1."""
    found: Tensor = _TokenLosses.apply(x, kernel, targets)  # type: ignore[no-untyped-call]
    return found


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Kernel, targets: Tensor) -> Tensor:
        is_wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(x), device=x.device)
        ctx.dx = torch.empty_like(x) if is_wanted else None  # of each row's own loss
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            wanted = targets[rows].unsqueeze(1)
            logs = functional.log_softmax(kernel.forward(x[rows]).float(), dim=-1)  # (M, V)
            losses[rows] = -logs.gather(1, wanted).squeeze(1)
            if is_wanted:
                dy = logs.exp_().scatter_add_(1, wanted, logs.new_full(wanted.shape, -1.0))
                ctx.dx[rows] = kernel.backward(dy.to(x.dtype))
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.dx * grads[0].unsqueeze(1)).to(ctx.dx.dtype), None, None
