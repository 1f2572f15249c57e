"""Recovery of the cuts of a curve: each is trained a little, at one learning rate that validation rows have chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from automl import progress
from automl.errors import ConfigError, Diverged, Problem
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.squeeze.curve import Cut
from automl.training.cut import Trained, TurnedAdapter
from automl.training.recovery import recover
from automl.training.runtime import Runtime

FACTORS = (0.1, 0.3, 1.0)
"""What is tried, as parts of the rate the adapter was trained at, or of the middle of its method's range."""
_BATCH = 8
_WARMUP = 0.1


class Recovered(NamedTuple):
    """The cuts with what they measure after their training; trained: by ranks, of those that were trained."""

    cuts: tuple[Cut, ...]
    trained: Mapping[tuple[int, ...], Trained]
    learning_rate: float | None


def check_steps(steps: int) -> None:
    """Raise ConfigError in one line for a number of steps that is none."""
    if steps < 1:
        raise ConfigError([Problem("", 0, 0, "--recover", f"{steps} steps train nothing; 1 is the least")])


def recover_cuts(
    adapter: TurnedAdapter,
    runtime: Runtime,
    cuts: Sequence[Cut],
    about: Mapping[str, Any],
    steps: int,
    check_running: Callable[[], None],
) -> Recovered:
    """Train every global cut for so many steps; with 0 none is. about: what the adapter's manifest says of its trial.

    The learning rate is that of `FACTORS` with the least loss on validation rows for the middle one of the cuts.
    Raises Diverged if none of them comes to an end, OutOfMemory, DataError.
    """
    if not steps:
        return Recovered(tuple(cuts), {}, None)
    chosen = [cut for cut in cuts if cut.kind in ("global", "asked")]
    hyper = _hyper(adapter, about.get("hyperparameters", {}), steps)

    def run(cut: Cut, rate: float, what: str) -> tuple[Mapping[str, float], Trained]:
        check_running()
        with progress.telling(lambda: f"recovering {cut.parameters:,} parameters, {what}"):
            trained = recover(adapter, runtime, cut.ranks, replace(hyper, learning_rate=rate), steps=steps, seed=0)
            return runtime.evaluate(adapter.model, runtime.evaluation_rows, runtime.evaluation_tokens), trained

    middle = sorted(chosen, key=lambda cut: cut.parameters)[len(chosen) // 2]
    tried = {}
    for factor in FACTORS:
        rate = factor * hyper.learning_rate
        try:
            tried[rate] = run(middle, rate, f"rate {rate:.2g}")
        except Diverged:
            continue
    if not tried:
        raise Diverged(f"recovery at none of the learning rates up to {hyper.learning_rate:.2g} comes to an end")
    rate = min(tried, key=lambda each: _number(tried[each][0]["loss"]))
    results = {cut.ranks: tried[rate] if cut is middle else run(cut, rate, f"{steps} steps") for cut in chosen}
    return Recovered(
        cuts=tuple(replace(cut, recovered=results[cut.ranks][0]) if cut in chosen else cut for cut in cuts),
        trained={ranks: trained for ranks, (_, trained) in results.items()},
        learning_rate=rate,
    )


def _hyper(adapter: TurnedAdapter, known: Mapping[str, Any], steps: int) -> Hyperparameters:
    """Optimizer of the trial as far as it is known; no dropout, no weight decay, warm-up and linear decay."""
    low, high = METHODS["lora"].learning_rates(sum(each.numel() for each in adapter.model.parameters()), steps)
    return Hyperparameters(
        learning_rate=float(known.get("learning_rate") or math.sqrt(low * high)),
        batch_size=int(known.get("batch_size") or _BATCH),
        weight_decay=0.0,
        warmup=_WARMUP,
        schedule="linear",
        own=Hyperparameters.of(known).own,
    )


def _number(value: float) -> float:
    return value if math.isfinite(value) else math.inf
