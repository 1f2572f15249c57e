"""Gradient checkpointing: the layers of a body keep their inputs only, and are run again in the backward pass.

torch's own checkpointing does not see what the packed layers keep for their hand-written backward pass, and puts back
the global generators but not those of the slots. Here the first run leaves nothing behind, and the second draws the
same dropout masks: it starts from the generators' states before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from automl.packed.segments import Segmentation


def recomputable(body: nn.Module) -> list[nn.Module]:
    """The layers that can be run again, as transformers marks them; none if this architecture has no such mark."""
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


class Recomputation:
    """Makes these layers forget their activations while gradients are wanted; `close` gives them back."""

    def __init__(self, layers: Sequence[nn.Module], segmentation: Segmentation) -> None:
        self._layers = list(layers)
        for layer in self._layers:
            layer.forward = _Forgetful(layer, segmentation)

    def close(self) -> None:
        """Undo what the constructor did."""
        for layer in self._layers:
            del layer.forward


class _Forgetful:
    """The `forward` of one layer."""

    def __init__(self, layer: nn.Module, segmentation: Segmentation) -> None:
        self._run: Callable[..., Any] = layer.forward
        self._segmentation = segmentation
        self._anchor = torch.zeros((), device=next(layer.parameters()).device, requires_grad=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # text may be generated, with a cache that must grow
            return self._run(*args, **kwargs)
        leaves, structure = pytree.tree_flatten(_without_cache(args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def run(tensors: Sequence[Tensor]) -> tuple[list[Any], Any]:
            for place, tensor in zip(places, tensors, strict=True):
                leaves[place] = tensor
            args, kwargs = pytree.tree_unflatten(leaves, structure)
            return pytree.tree_flatten(self._run(*args, **kwargs))

        given = [leaves[place] for place in places]
        found = _Twice.apply(self._anchor, run, self._segmentation, shape := _Shape(), *given)  # type: ignore[no-untyped-call]
        return shape.built(found)


def _without_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without keys and values to which the layer would add its own, twice.

    What the argument is called differs between architectures and versions of transformers: it is known by its type.
    """
    kept = tuple(None if isinstance(value, Cache) else value for value in args)
    return kept, {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}


class _Shape:
    """How the tensors that a layer returned are put together again; numbers and None come from the first run."""

    def taken(self, flat: Sequence[Any], structure: Any) -> tuple[Tensor, ...]:
        self._flat, self._structure = [None if isinstance(leaf, Tensor) else leaf for leaf in flat], structure
        self._places = [place for place, leaf in enumerate(flat) if isinstance(leaf, Tensor)]
        return tuple(flat[place] for place in self._places)

    def built(self, tensors: Sequence[Tensor]) -> Any:
        for place, tensor in zip(self._places, tensors, strict=True):
            self._flat[place] = tensor
        return pytree.tree_unflatten(self._flat, self._structure)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, run: Callable[..., Any], segmentation: Segmentation, shape: _Shape, *given: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.run, ctx.segmentation, ctx.before = run, segmentation, _states(segmentation)
        ctx.casting = _casting(anchor.device.type)  # the backward pass may run in a thread that knows nothing of it
        ctx.save_for_backward(*given)
        return shape.taken(*run(given))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[4:]
        again = [
            tensor.detach().requires_grad_(is_wanted)
            for tensor, is_wanted in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad(), torch.autocast(**ctx.casting), _generators_at(ctx.segmentation, ctx.before):
            flat, _ = ctx.run(again)
        found = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        pairs = [
            (tensor, grad)
            for tensor, grad in zip(found, grads, strict=True)
            if tensor.requires_grad and grad is not None
        ]
        torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])
        return (None, None, None, None, *(tensor.grad for tensor in again))


def _casting(device: str) -> dict[str, Any]:
    """The automatic casts in force, as arguments of `torch.autocast`."""
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
        "cache_enabled": False,
    }


def _states(segmentation: Segmentation) -> list[Tensor | None]:
    """States of the segments' dropout generators."""
    return [
        None if segment.adapter.generator is None else segment.adapter.generator.get_state()
        for segment in segmentation.segments
    ]


@contextmanager
def _generators_at(segmentation: Segmentation, states: Sequence[Tensor | None]) -> Iterator[None]:
    """Inside the block the segments' generators go on from these states; afterwards from where they were."""
    after = _states(segmentation)
    _set(segmentation, states)
    try:
        yield
    finally:
        _set(segmentation, after)


def _set(segmentation: Segmentation, states: Sequence[Tensor | None]) -> None:
    for segment, state in zip(segmentation.segments, states, strict=True):
        if segment.adapter.generator is not None and state is not None:
            segment.adapter.generator.set_state(state)
