"""The network of a bottleneck adapter, and how a layer of a backbone is given one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.lora import LinearShape
from automl.methods.in_place import on_restore
from automl.methods.seeding import initialise_adapter

NAME = "bottleneck"
"""Name of a bottleneck in its layer, and so in the names of its tensors."""


class Bottleneck(nn.Module):
    """scale · (W_up f(W_down x + b_down) + b_up), computed in float32 outside autocast, in the type of x.

    Without numbers until it is `started`. is_beside: it reads the input of another layer, which is `seen` on its way.
    """

    def __init__(self, features: int, size: int, function: str, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(features, size, device="meta")
        self.up = nn.Linear(size, features, device="meta")
        self.function = function
        self.scale = scale
        self.is_beside = False
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        inside = getattr(torch.nn.functional, self.function)(self.down(x.to(self.down.weight.dtype)))
        added: Tensor = self.scale * self.up(inside)
        return added.to(x.dtype)

    def added(self, output: Tensor) -> Tensor:
        """What it adds to this output of its layer."""
        if not self.is_beside:
            return self(output)  # type: ignore[no-any-return]  # torch's call is untyped
        assert self.seen is not None
        seen, self.seen = self.seen, None
        return self(seen)  # type: ignore[no-any-return]


def started(bottleneck: Bottleneck, seed: int, path: str) -> Bottleneck:
    """Return the bottleneck with W_down uniform in ±1/√in, from a stream of its own, and all else zero."""
    bottleneck.to_empty(device="cpu")
    initialise_adapter(bottleneck.down.weight, bottleneck.up.weight, seed=seed, path=f"{path}.{NAME}")
    nn.init.zeros_(bottleneck.down.bias)
    nn.init.zeros_(bottleneck.up.bias)
    return bottleneck


def insert(model: nn.Module, bottleneck: Bottleneck, path: str, source: str | None) -> None:
    """Make it a part of the layer at this path, adding to what that puts out, until the adapter is taken off.

    source: path of the layer whose input it reads; None: the layer's own output.
    """
    add_to(model, path, NAME, bottleneck, bottleneck.added)
    read_from(model, bottleneck, source)


def add_to(model: nn.Module, path: str, name: str, part: nn.Module, added: Callable[[Tensor], Tensor]) -> None:
    """Make the part a child of the layer at this path, and let what `added` makes of the layer's output be added."""
    layer = model.get_submodule(path)
    layer.add_module(name, part.to(next(layer.parameters()).device))
    on_restore(model, partial(delattr, layer, name))
    on_restore(model, layer.register_forward_hook(partial(_add, added)).remove)


def read_from(model: nn.Module, bottleneck: Bottleneck, source: str | None) -> None:
    """Let the bottleneck read the input of the layer at this path; None: the output of its own layer."""
    if source is not None:
        bottleneck.is_beside = True
        on_restore(model, model.get_submodule(source).register_forward_pre_hook(partial(_read, bottleneck)).remove)


def shape_of(model: nn.Module, path: str) -> LinearShape:
    """The linear layer at this path; a Conv1D stores its weight the other way round."""
    layer: Any = model.get_submodule(path)
    if isinstance(layer, Conv1D):
        return LinearShape(path, *layer.weight.shape)
    return LinearShape(path, layer.in_features, layer.out_features)


def _add(added: Callable[[Tensor], Tensor], layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output + added(output)


def _read(bottleneck: Bottleneck, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    bottleneck.seen = inputs[0]
