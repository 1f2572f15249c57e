"""Products with a frozen weight that is held in few bits: made dense once for the rows of all trials, then let go.

So a forward and a backward pass of a micro-step make each weight dense once each, whatever the number of trials, and
one layer's dense weight is in memory at a time. Scales that are quantised themselves are made dense for good: 1/16 byte
for a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from automl.models.quantised import dense_scales, dense_weight


class Dequantised:
    """A `Kernel` over a quantised layer. dtype: of the products; inputs and results keep their own."""

    def __init__(self, module: nn.Linear, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype
        self._scales = dense_scales(module)
        self._bias = None if module.bias is None else module.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._weight()  # (O, I)
        return functional.linear(x.to(self._dtype), weight, self._bias).to(x.dtype)

    def backward(self, g: Tensor) -> Tensor:
        return (g.to(self._dtype) @ self._weight()).to(g.dtype)

    def _weight(self) -> Tensor:
        return dense_weight(self._module, self._dtype, scales=self._scales)
