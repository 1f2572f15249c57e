"""Several bottleneck adapters joined by attention that is trained: the fusion's training and its learning rate.

Nothing of it is kept on the way: stopped, it begins again and comes to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from automl import progress
from automl.compose.found import place_of
from automl.compose.members import Found
from automl.compose.mixing import Recipe
from automl.errors import Diverged
from automl.methods.fusion import attach_fused, fusions, member_tensor, value_penalty
from automl.methods.in_place import restored
from automl.models.inventory import head_modules, resolve_targets
from automl.squeeze.recover import FACTORS
from automl.training import optim
from automl.training.export import travelling
from automl.training.fitting import fit
from automl.training.runtime import Runtime
from automl.trial import Metrics

_WARMUP = 0.1
_SEED = 0
"""Seed of what query and key start with, and of the order of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """A trained fusion. tensors: of its file, members and head among them. members: their hyperparameters."""

    tensors: Mapping[str, Tensor]
    metrics: Metrics
    learning_rate: float
    steps: int
    members: Sequence[Mapping[str, Any]]

    @property
    def about(self) -> dict[str, Any]:
        """What a manifest says of it; by `members` it is attached again."""
        return {"learning_rate": self.learning_rate, "steps": self.steps, "members": list(self.members)}


def fuse(
    runtime: Runtime, found: Sequence[Found], recipe: Recipe, metric: str, check_running: Callable[[], None]
) -> Fused:
    """Train the fusion of these adapters, best first, at three learning rates; the best on validation rows is left.

    The rates are parts of the first adapter's own, and the head begins as its head. The model is as it was afterwards.
    Raises Diverged if no rate comes to an end, OutOfMemory, DataError, and what `check_running` raises, which is called
    before each step.
    """
    files = [load_file(each.weights) for each in found]
    steps = recipe.steps or int(found[0].about["step"])
    tried: list[Fused] = []
    for factor in FACTORS:
        rate = factor * found[0].hyper.learning_rate
        try:
            tried.append(_trained(runtime, found, files, rate, steps, check_running))
        except Diverged:
            continue
    best = min(tried, key=lambda each: place_of(each.metrics, metric), default=None)
    if best is None or not math.isfinite(best.metrics["loss"]):
        raise Diverged(f"the fusion comes to an end at no learning rate up to {found[0].hyper.learning_rate:.2g}")
    return best


def _trained(
    runtime: Runtime,
    found: Sequence[Found],
    files: Sequence[Mapping[str, Tensor]],
    rate: float,
    steps: int,
    check_running: Callable[[], None],
) -> Fused:
    hyper = replace(found[0].hyper, learning_rate=rate, weight_decay=0.0, warmup=_WARMUP, schedule="linear")
    at = 0

    def before_step(step: int) -> None:
        nonlocal at
        check_running()
        at = step

    with _joined(runtime, found, files) as model, progress.telling(lambda: _line(found, rate, at, steps)):
        fit(
            model,
            _learnt(model),
            runtime,
            hyper,
            steps=steps,
            seed=_SEED,
            what="the fusion",
            penalty=lambda: value_penalty(model),
            before_step=before_step,
        )
        return Fused(
            tensors=_copies(model),
            metrics=runtime.evaluate(model, runtime.evaluation_rows, runtime.evaluation_tokens),
            learning_rate=rate,
            steps=steps,
            members=[each.hyper.as_dict() for each in found],
        )


def _line(found: Sequence[Found], rate: float, step: int, steps: int) -> str:
    numbers = ", ".join(str(each.number) for each in found)
    return f"joining trials {numbers} by attention, learning rate {rate:.2g}, step {step} of {steps}"


@contextmanager
def _joined(runtime: Runtime, found: Sequence[Found], files: Sequence[Mapping[str, Tensor]]) -> Iterator[nn.Module]:
    """The model with the adapters and their fusion as it begins, until the end of the block."""
    layers = [layer.path for layer in resolve_targets(runtime.model, found[0].hyper.target, runtime.targets)]
    head = head_modules(runtime.model)
    model = attach_fused(runtime.model, [each.hyper for each in found], layers, head, _SEED)
    try:
        own = dict(model.named_parameters())
        with torch.no_grad():
            for number, tensors in enumerate(files):
                for name, tensor in tensors.items():
                    place = member_tensor(name, number) or (None if number else name)
                    if place is not None:
                        own[place].copy_(tensor)
        yield model.to(runtime.device).eval()
    finally:
        restored(model)


def _learnt(model: nn.Module) -> optim.Parameters:
    """What is trained: attention and head, not the members."""
    for fusion in fusions(model):
        fusion.members.requires_grad_(False)
    return optim.trainable(model)


def _copies(model: nn.Module) -> dict[str, Tensor]:
    """All that the fusion's file holds, on the CPU."""
    for fusion in fusions(model):
        fusion.members.requires_grad_(True)
    return {name: optim.copied(tensor) for name, tensor in travelling(model).items()}
