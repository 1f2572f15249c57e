"""When training trials together is not faster than one after the other, said before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator

from automl.models.inventory import linear_layers
from automl.space.spec import SweepSpec
from automl.sweep.costs import extremes, target_names
from automl.sweep.ground import Ground
from automl.sweep.layout import Layout
from automl.sweep.packing import Packing

GPU_FULL_TOKENS = 2048
"""Tokens of one trial's step from which a GPU is busy with one trial alone (docs/benchmarks.md, `gpu_packed`)."""


def doubts(spec: SweepSpec, ground: Ground, layout: Layout, packing: Packing) -> Iterator[str]:
    """Reasons why packing gains little in this sweep, each a sentence for a person; none if trials are not packed."""
    if not packing.is_packed:
        return
    tokens = extremes(ground.space, "batch_size")[0] * min(spec.task.max_length, ground.prepared.longest)
    if layout.device == "cuda" and tokens >= GPU_FULL_TOKENS:
        yield (
            f"a step of one trial has up to {tokens:,} tokens, which keep a GPU busy alone: packing saves start-up and"
            " copies of the model here, hardly any time (docs/packed.md)"
        )
    if packing.slots == 1 and spec.search.trials > layout.workers:
        yield "there is memory for one trial at a time only; smaller batches, shorter rows or a lower rank make room"
    share = shared_depth(ground)
    if share >= 0.5:
        yield (
            f"no target reaches below the upper {1 - share:.0%} of the layers: one trial's backward pass is short"
            " already, and the lower layers, though equal for all, are computed for each (docs/packed.md)"
        )


def shared_depth(ground: Ground) -> float:
    """Share of the model's linear layers, counted from the input, that no target set adapts."""
    order = {layer.path: place for place, layer in enumerate(linear_layers(ground.model))}
    lowest = min(order[layer.path] for name in target_names(ground.space) for layer in ground.derive.layers(name))
    return lowest / len(order)
