"""Another head over the same backbone: for tasks that tell other classes apart, with one set of weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from automl.head import Kind
from automl.methods.seeding import initialise_head
from automl.models.backbone import BackboneRef, skeleton
from automl.models.inventory import head_modules, mark_like


def with_head(model: nn.Module, ref: BackboneRef, kind: Kind, labels: Sequence[str]) -> nn.Module:
    """The network of `model` with a new head for these labels; the model itself, if that is what it has.

    Everything below the head is shared with the model, which has the same kind of head. The head is frozen and drawn
    from seed 0, as one that a checkpoint lacks; trials begin with heads of their own.
    """
    names = head_modules(model)
    if not names or list(model.config.id2label.values()) == list(labels):  # type: ignore[union-attr, operator]
        return model
    other = skeleton(ref, kind, labels)
    for name, shared in model.named_children():
        if name not in names:
            setattr(other, name, shared)
    std = float(getattr(model.config, "initializer_range", 0.02))
    some = next(model.parameters())
    for name in names:
        head = other.get_submodule(name).to_empty(device=some.device).to(next(model.get_submodule(name).parameters()))
        initialise_head(head, seed=0, path=name, std=std)
    _describe(other, like=model)
    mark_like(other, model)
    return other.requires_grad_(False).eval()


def _describe(other: nn.Module, *, like: nn.Module) -> None:
    """Give it the configuration of the other network, with its own labels."""
    config = copy.deepcopy(like.config)
    config.id2label, config.label2id = other.config.id2label, other.config.label2id  # type: ignore[union-attr]
    other.config = config
