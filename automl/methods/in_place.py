"""Adapting a backbone without PEFT: in place, with the way back remembered by the model until it is taken.

The adapted model is then the model of transformers itself, so that all it can do is done as before. Its trained
parameters are new ones, of float32; those of the backbone are never written to, and are all there again afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from automl.methods.seeding import initialise_head

_UNDO = "_automl_undo"


def is_in_place(model: nn.Module) -> bool:
    """Whether the model is a backbone that holds an adapter of this kind."""
    return _UNDO in vars(model)


def on_restore(model: nn.Module, undo: Callable[[], object]) -> None:
    """Call this when the adapter is taken off, last come first served."""
    vars(model).setdefault(_UNDO, []).append(undo)


def substitute(model: nn.Module, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a part of the model, a submodule or a parameter among others, until the adapter is off."""
    on_restore(model, partial(setattr, owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def restored(model: nn.Module) -> nn.Module:
    """The backbone as it was before it was adapted, frozen, in eval mode."""
    undo = vars(model).pop(_UNDO)
    while undo:
        undo.pop()()
    return model.requires_grad_(False).eval()


def fresh_heads(model: nn.Module, head: Sequence[str], seed: int) -> None:
    """Put copies in the place of the heads, trained from a fresh start, in float32."""
    std = float(getattr(model.config, "initializer_range", 0.02))
    for path in head:
        parent, _, name = path.rpartition(".")
        fresh = copy.deepcopy(model.get_submodule(path)).to(torch.float32).requires_grad_(True)
        initialise_head(fresh, seed=seed, path=path, std=std)
        substitute(model, model.get_submodule(parent), name, fresh)
