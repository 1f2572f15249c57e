"""How much the loss of a packed trial hangs on the update of each module: `automl.importance` on adapters of a pack."""

from __future__ import annotations

from collections.abc import Sequence

from automl.importance.sensitivity import Factors, Sensitivity
from automl.lora import LinearShape
from automl.packed.adapter import Adapter


def new_sensitivity(adapter: Adapter, layers: Sequence[LinearShape], norms: Sequence[float]) -> Sensitivity:
    """Nothing is known yet. layers: that the adapter adapts; norms: of their weights."""
    return Sensitivity(layers, max(map(adapter.hyper.rank_of, adapter.low_rank)), norms)


def factors(adapter: Adapter) -> list[Factors]:
    """The updates and what has been gathered of their gradients: a sum over terms."""
    scaling = adapter.hyper.scaling
    return [Factors(part.a, part.b, part.b_grad, scaling) for part in adapter.low_rank.values()]
