"""Products with frozen weights: which kernel computes them on this machine, and in which precision.

Every kernel is one linear layer, forward and backward, without a gradient of its weight. `Plain` is the reference;
the others are held against it by tests. Legend: N rows, I input features, O output features.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16h"]
"""bf16h: products with frozen weights in bfloat16, everything else float32."""

_WIDTH = 768  # of the product that is timed
_ROWS_HINT = 512  # oneDNN picks the blocking of a prepacked weight for about this many rows
_WORTHWHILE = 1.3  # bf16h changes the numbers, so it has to be faster by this factor


class Kernel(Protocol):
    """One frozen linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """y = x Wᵀ + b, float32. x: (N, I) float32; returns (N, O), newly allocated."""

    def backward(self, g: Tensor) -> Tensor:
        """Gradient of x: g W, float32. g: (N, O) float32; returns (N, I), newly allocated."""


KernelFactory = Callable[[Tensor, Tensor | None], Kernel]
"""Builds a kernel from a weight (O, I) and a bias (O,) or None."""


class Plain:
    """torch's own matrix product in the weight's type. Its result for a row may depend on how many rows there are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def backward(self, g: Tensor) -> Tensor:
        return g @ self.weight


class PlainHalf:
    """torch's own matrix product in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.to(torch.bfloat16)
        self.bias = None if bias is None else bias.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(torch.bfloat16), self.weight, self.bias).float()

    def backward(self, g: Tensor) -> Tensor:
        return (g.to(torch.bfloat16) @ self.weight).float()


class Prepacked:
    """oneDNN with W and Wᵀ laid out once for its kernel: twice the memory of the weight, 1.1 to 1.3 times the speed.

    The result for a row does not depend on the other rows or on their number, to the bit.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = _prepack(weight)
        self.transposed = _prepack(weight.t().contiguous())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return _prepacked_linear(x, self.weight, self.bias)

    def backward(self, g: Tensor) -> Tensor:
        return _prepacked_linear(g, self.transposed, None)


class PrepackedHalf:
    """oneDNN's kernel as in `Prepacked`, in bfloat16; the bias is added before rounding.

    With AMX and many inputs (from 576 on, seen at 1,536) a sum's order depends on the number of rows: to rounding only.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        half = weight.to(torch.bfloat16)
        self.weight = _prepack(half)
        self.transposed = _prepack(half.t().contiguous())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return _prepacked_linear(x.to(torch.bfloat16), self.weight, self.bias).float()

    def backward(self, g: Tensor) -> Tensor:
        return _prepacked_linear(g.to(torch.bfloat16), self.transposed, None).float()


class PrepackedMixed:
    """Forward in float32, backward in bfloat16: for the lm_head, whose logits a loss is read off."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = _prepack(weight)
        self.transposed = _prepack(weight.to(torch.bfloat16).t().contiguous())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return _prepacked_linear(x, self.weight, self.bias)

    def backward(self, g: Tensor) -> Tensor:
        return _prepacked_linear(g.to(torch.bfloat16), self.transposed, None).float()


class Rounded:
    """torch's product of float32 matrices, which oneDNN rounds to bfloat16 on CPUs that know it; sums are float32.

    Keeps no copy of the weight but for a while (`at_hand`). Elsewhere it is `Plain`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._half: Tensor | None = None

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Inside the block the weight is there in bfloat16: several backward products then take half the time."""
        self._half = self.weight.to(torch.bfloat16)
        try:
            yield
        finally:
            self._half = None

    def forward(self, x: Tensor) -> Tensor:
        with _rounding():
            return functional.linear(x, self.weight, self.bias)

    def backward(self, g: Tensor) -> Tensor:
        if self._half is not None:
            return (g.to(torch.bfloat16) @ self._half).float()
        with _rounding():
            return g @ self.weight


KERNELS: dict[str, KernelFactory] = {
    "torch-fp32": Plain,
    "torch-bf16h": PlainHalf,
    "torch-bf16": Plain,  # of a model that is held in bfloat16
    "onednn-fp32": Prepacked,
    "onednn-bf16h": PrepackedHalf,
}
"""Kernels by the name that is recorded with a study."""

OUTPUT_KERNELS: dict[str, KernelFactory] = {
    "torch-fp32": Plain,
    "torch-bf16h": Plain,
    "torch-bf16": Plain,
    "onednn-fp32": Prepacked,
    "onednn-bf16h": PrepackedMixed,
}
"""Kernels of the lm_head, under the same names: rounding logits to bfloat16 would show in the loss."""


def choose_kernel(precision: str, device: torch.device) -> str:
    """Name of the fastest kernel that works on this device.

    Raises ValueError for a precision other than fp32, bf16h and bf16.
    """
    if precision not in ("fp32", "bf16h", "bf16"):
        raise ValueError(f"precision {precision!r}: the packed trainer knows fp32, bf16h and bf16")
    if precision == "bf16":  # whole models in bfloat16 are for GPUs: on a CPU it works, and is slower
        return "torch-bf16"
    if device.type == "cpu" and works(f"onednn-{precision}"):
        return f"onednn-{precision}"
    return f"torch-{precision}"


def choose_precision(device: torch.device, *, threads: int | None = None) -> Precision:
    """What `precision: auto` means here, by timing one product for a few milliseconds on this machine.

    bf16h if it is at least 1.3 times as fast as fp32. To be asked once per study, not once per worker.
    """
    seconds = product_seconds(device, threads=threads)
    return "bf16h" if seconds["fp32"] >= _WORTHWHILE * seconds["bf16h"] else "fp32"


def product_seconds(device: torch.device, *, threads: int | None = None) -> dict[Precision, float]:
    """Seconds of one product, forward and backward, in fp32 and in bf16h, with the kernel that each would have here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    kernels: dict[Precision, Kernel] = {
        precision: KERNELS[choose_kernel(precision, device)](_drawn(_WIDTH, _WIDTH).to(device), None)
        for precision in ("fp32", "bf16h")
    }
    try:  # by turns, so that other work on the machine meets both
        rounds = [{name: _seconds(kernel, device) for name, kernel in kernels.items()} for _ in range(6)]
    finally:
        torch.set_num_threads(before)
    return {name: min(seconds[name] for seconds in rounds) for name in kernels}


@lru_cache(maxsize=len(KERNELS))
def works(name: str) -> bool:
    """Whether the kernel of this name can be used on this CPU and agrees with torch's own product.

    Each is asked alone: oneDNN multiplies in float32 on every CPU, in bfloat16 only on those that know it.
    """
    if not name.startswith("onednn-"):
        return True
    weight, x = _drawn(24, 40), _drawn(8, 40)
    rtol, atol = (1e-4, 1e-3) if name == "onednn-fp32" else (0.05, 1.0)
    try:
        kernels = KERNELS[name](weight, None), OUTPUT_KERNELS[name](weight, None)
        y = x @ weight.t()
        pairs = [pair for each in kernels for pair in ((each.forward(x), y), (each.backward(y), y @ weight))]
        return all(torch.allclose(one, other, rtol=rtol, atol=atol) for one, other in pairs)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        logger.debug("kernel %s cannot be used here", name, exc_info=True)
        return False


@contextmanager
def _rounding() -> Iterator[None]:
    """Inside the block oneDNN may round the factors of products of float32 matrices to bfloat16."""
    backend: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def _drawn(rows: int, columns: int) -> Tensor:
    """Random numbers that leave torch's global generator alone."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _prepack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)
    return packed


def _prepacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _seconds(kernel: Kernel, device: torch.device) -> float:
    """Time of a forward and a backward product, casts included."""
    x = _drawn(_ROWS_HINT, _WIDTH).to(device)
    start = time.perf_counter()
    kernel.backward(kernel.forward(x)).sum().item()  # waits for the device
    return time.perf_counter() - start
