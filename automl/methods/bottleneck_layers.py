"""The network of a bottleneck adapter, and how a layer of a backbone is given one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.lora import LinearShape
from automl.methods.in_place import on_restore
from automl.methods.seeding import initialise_adapter

_NAME = "bottleneck"


class Bottleneck(nn.Module):
    """scale · (W_up f(W_down x + b_down) + b_up), computed in float32 outside autocast, in the type of x.

    Without numbers until it is `started`. seen: an input that was read elsewhere, on its way here.
    """

    def __init__(self, features: int, size: int, function: str, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(features, size, device="meta")
        self.up = nn.Linear(size, features, device="meta")
        self.function = function
        self.scale = scale
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        inside = getattr(torch.nn.functional, self.function)(self.down(x.to(self.down.weight.dtype)))
        added: Tensor = self.scale * self.up(inside)
        return added.to(x.dtype)


def started(bottleneck: Bottleneck, seed: int, path: str) -> Bottleneck:
    """Return the bottleneck with W_down uniform in ±1/√in, from a stream of its own, and all else zero."""
    bottleneck.to_empty(device="cpu")
    initialise_adapter(bottleneck.down.weight, bottleneck.up.weight, seed=seed, path=f"{path}.{_NAME}")
    nn.init.zeros_(bottleneck.down.bias)
    nn.init.zeros_(bottleneck.up.bias)
    return bottleneck


def insert(model: nn.Module, bottleneck: Bottleneck, path: str, source: str | None) -> None:
    """Make it a part of the layer at this path, adding to what that puts out, until the adapter is taken off.

    source: path of the layer whose input it reads; None: the layer's own output.
    """
    layer = model.get_submodule(path)
    layer.add_module(_NAME, bottleneck.to(next(layer.parameters()).device))
    on_restore(model, partial(delattr, layer, _NAME))
    if source is None:
        hooks = [layer.register_forward_hook(partial(_behind, bottleneck))]
    else:
        reads = model.get_submodule(source).register_forward_pre_hook(partial(_read, bottleneck))
        hooks = [reads, layer.register_forward_hook(partial(_beside, bottleneck))]
    for hook in hooks:
        on_restore(model, hook.remove)


def shape_of(model: nn.Module, path: str) -> LinearShape:
    """The linear layer at this path; a Conv1D stores its weight the other way round."""
    layer: Any = model.get_submodule(path)
    if isinstance(layer, Conv1D):
        return LinearShape(path, *layer.weight.shape)
    return LinearShape(path, layer.in_features, layer.out_features)


def _behind(bottleneck: Bottleneck, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    added: Tensor = output + bottleneck(output)
    return added


def _beside(bottleneck: Bottleneck, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    assert bottleneck.seen is not None
    seen, bottleneck.seen = bottleneck.seen, None
    added: Tensor = output + bottleneck(seen)
    return added


def _read(bottleneck: Bottleneck, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    bottleneck.seen = inputs[0]
