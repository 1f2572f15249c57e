"""When training trials together is not faster than one after the other, said before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator

from automl.models.inventory import linear_layers
from automl.setup.machine import Layout
from automl.setup.packing import Packing
from automl.setup.prepare import Inputs
from automl.space.extremes import extremes, target_names
from automl.space.spec import SweepSpec

GPU_FULL_TOKENS = 2048
"""Tokens of one trial's step from which a GPU is busy with one trial alone (docs/benchmarks.md, `gpu_packed`)."""


def packing_warnings(spec: SweepSpec, inputs: Inputs, layout: Layout, packing: Packing) -> Iterator[str]:
    """Reasons why packing gains little in this sweep, each a sentence for a person; none if trials are not packed."""
    if not packing.is_packed:
        return
    tokens = extremes(inputs.space, "batch_size")[0] * min(spec.task.max_length, inputs.prepared.longest)
    if layout.device == "cuda" and tokens >= GPU_FULL_TOKENS:
        yield (
            f"a step of one trial has up to {tokens:,} tokens, which keep a GPU busy alone: packing saves start-up and"
            " copies of the model here, hardly any time (docs/packed.md)"
        )
    if packing.slots == 1 and spec.search.trials > layout.workers:
        yield "there is memory for one trial at a time only; smaller batches, shorter rows or a lower rank make room"
    share = shared_depth(inputs)
    if share >= 0.5:
        yield (
            f"no target reaches below the upper {1 - share:.0%} of the layers: one trial's backward pass is short"
            " already, and the lower layers, though equal for all, are computed for each (docs/packed.md)"
        )


def shared_depth(inputs: Inputs) -> float:
    """Share of the model's linear layers, counted from the input, that no target set adapts."""
    order = {layer.path: place for place, layer in enumerate(linear_layers(inputs.model))}
    lowest = min(order[layer.path] for name in target_names(inputs.space) for layer in inputs.derive.layers(name))
    return lowest / len(order)
