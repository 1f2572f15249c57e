"""Heads of all slots of a bank at once: every linear layer and norm of a head with each slot's own parameters.

Computed in float32, whatever the backbone's type. A head that is made of something else cannot be batched; its trials
are packed slot by slot. Legend: K slots of the pack, M rows of each (tokens included), I, O features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from automl.packed.segments import Pack, Segmentation


def can_batch(heads: Mapping[str, nn.Module]) -> bool:
    """Whether all parameters of these heads belong to linear layers and layer norms."""
    return all(
        isinstance(module, nn.Linear | nn.LayerNorm) or not list(module.parameters(recurse=False))
        for head in heads.values()
        for module in head.modules()
    )


class PackedHeads:
    """Takes the place of `forward` in the parts of heads while a pack is computed; `close` gives them back."""

    def __init__(self, heads: Mapping[str, nn.Module], segmentation: Segmentation) -> None:
        self._parts = dict(_parts(heads))
        for path, module in self._parts.items():
            module.forward = _Part(path, module, segmentation)

    def close(self) -> None:
        """Undo what the constructor did."""
        for module in self._parts.values():
            del module.forward


class _Part:
    """One linear layer or norm."""

    def __init__(self, path: str, module: nn.Module, segmentation: Segmentation) -> None:
        self._path = path
        self._module = module
        self._segmentation = segmentation
        self._plain: Callable[..., Any] = module.forward
        self._anchor = torch.zeros((), device=next(module.parameters()).device, requires_grad=True)

    def __call__(self, x: Tensor) -> Any:
        pack = self._segmentation.pack
        if pack is None:
            return self._plain(x)
        with torch.autocast(x.device.type, enabled=False):
            own = pack.by_segment(x.float().reshape(-1, x.shape[-1]))  # (K, M, I)
            y = pack.by_row(self._linear(pack, own) if isinstance(self._module, nn.Linear) else self._norm(pack, own))
        return y.view(*x.shape[:-1], -1)

    def _linear(self, pack: Pack, x: Tensor) -> Tensor:
        y = torch.bmm(x, self._parameter(pack, "weight").mT)  # (K, M, O)
        return y if self._module.bias is None else y + self._parameter(pack, "bias").unsqueeze(1)

    def _norm(self, pack: Pack, x: Tensor) -> Tensor:
        assert isinstance(self._module, nn.LayerNorm)
        y = functional.layer_norm(x, self._module.normalized_shape, eps=self._module.eps)
        if self._module.weight is not None:
            y = y * self._parameter(pack, "weight").unsqueeze(1)
        return y if self._module.bias is None else y + self._parameter(pack, "bias").unsqueeze(1)

    def _parameter(self, pack: Pack, name: str) -> Tensor:
        values, grads = pack.bank.heads[f"{self._path}.{name}"]
        found: Tensor = _Rows.apply(self._anchor, values, grads, pack.rows)  # type: ignore[no-untyped-call]
        return found


class _Rows(torch.autograd.Function):
    """Some rows of a matrix of parameters; their gradient is added to the same rows of another."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, values: Tensor, grads: Tensor, rows: Tensor) -> Tensor:
        ctx.grads, ctx.rows = grads, rows
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[None, None, None, None]:
        ctx.grads.index_add_(0, ctx.rows, given[0])
        return None, None, None, None


def _parts(heads: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for head, module in heads.items():
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear | nn.LayerNorm):
                yield ".".join(filter(None, (head, name))), part
