"""Linear layers in 4 bits whose packed weights are plain parameters, so that FSDP can share them out.

Of a parameter of a class of its own FSDP makes plain ones, and what bitsandbytes keeps in its Params4bit is lost (torch
2.13, distributed/fsdp/_fully_shard/_fsdp_param.py). These layers need none of it, and compute the same.
See docs/adr/0056-shared-out-in-few-bits.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from automl.models.quantised import is_in_four_bits

_BYTES = torch.float8_e4m3fn
"""What bytes are called while they are shared out: FSDP of some versions of torch takes floating-point numbers only."""


def hold_plainly(model: nn.Module) -> None:
    """Make such layers of bitsandbytes', for good. Each stays the module it is, with the hooks and modules on it."""
    for module in list(model.modules()):
        if is_in_four_bits(module) and "weight" in dict(module.named_parameters(recurse=False)):  # no adapter around it
            _make_plain(module)


class PlainlyHeld(nn.Module):
    """y = W x + bias with W made dense for each product, in the forward and again in the backward pass.

    weight: two weights in a byte, (n / 2, 1). scales: of blocks of 64, float32 or in 8 bits with scales of their own,
    `outer_…`, which are few and everywhere whole. how: kind, size of a block and shape of W. outer_block: scales that
    share one, 0 if they are float32.
    """

    weight: nn.Parameter
    scales: nn.Parameter
    bias: nn.Parameter | None
    compute_dtype: torch.dtype
    how: tuple[str, int, tuple[int, int]]
    outer_block: int
    outer_absmax: Tensor
    outer_code: Tensor
    outer_offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """In the layer's type, as bitsandbytes does it in training."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        found: Tensor = _Product.apply(x.to(self.compute_dtype), self.weight, self.scales, bias, self)  # type: ignore[no-untyped-call]
        return found.to(x.dtype)

    def dense(self, weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """The whole weight, (out, in), from what is held of it."""
        kind, block, shape = self.how
        if self.outer_block:
            inner = torch.ops.bitsandbytes.dequantize_blockwise(
                scales.view(torch.uint8), self.outer_absmax, self.outer_code, self.outer_block, torch.float32
            )
            scales = inner + self.outer_offset
        found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            weight.view(torch.uint8), scales, block, kind, shape, dtype
        )
        return found


def _make_plain(layer: Any) -> None:
    weight, state = layer.weight, layer.weight.quant_state
    layer.__class__ = PlainlyHeld
    layer.weight = nn.Parameter(_shareable(weight.data), requires_grad=False)
    layer.scales = nn.Parameter(_shareable(state.absmax), requires_grad=False)
    layer.how = (state.quant_type, state.blocksize, tuple(state.shape))
    layer.outer_block = 0
    if state.nested:
        layer.outer_block = state.state2.blocksize
        for name, tensor in (("absmax", state.state2.absmax), ("code", state.state2.code), ("offset", state.offset)):
            layer.register_buffer(f"outer_{name}", tensor, persistent=False)


def _shareable(numbers: Tensor) -> Tensor:
    return numbers.view(_BYTES) if numbers.dtype == torch.uint8 else numbers


class _Product(torch.autograd.Function):
    """The product with the dense weight, of which only what is held is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, layer: PlainlyHeld) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.layer = layer
        return functional.linear(x, layer.dense(weight, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return gradient @ ctx.layer.dense(*ctx.saved_tensors, gradient.dtype), None, None, None, None
