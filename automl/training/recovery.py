"""A little training of a cut adapter and its head, in place, so that what is left makes up for what was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from automl.lora import Hyperparameters
from automl.training.cut import Trained, TurnedAdapter
from automl.training.fitting import fit
from automl.training.runtime import Runtime


def recover(
    adapter: TurnedAdapter,
    runtime: Runtime,
    ranks: Sequence[int],
    hyper: Hyperparameters,
    *,
    steps: int,
    seed: int,
    before_step: Callable[[int], None] | None = None,
) -> Trained:
    """Cut to these ranks and train; the model is left trained until it is cut again. Returns copies of its tensors.

    hyper: of the optimizer, batch and schedule. seed: of the order of rows. before_step: as of `fit`. Raises Diverged,
    OutOfMemory, DataError.
    """
    fit(
        adapter.model,
        adapter.trainable(ranks),
        runtime,
        hyper,
        steps=steps,
        seed=seed,
        what="recovery",
        before_step=before_step,
    )
    return adapter.trained()
