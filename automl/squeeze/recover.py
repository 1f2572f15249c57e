"""Recovery of the cuts of a curve: each is trained a little, at one learning rate that validation rows have chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from automl.errors import ConfigError, Diverged, Problem
from automl.lora import Hyperparameters
from automl.methods.lora import FREEZE, INIT
from automl.methods.registry import METHODS
from automl.squeeze.curve import Cut
from automl.squeeze.trainings import Course, Ground, Job, Result, trainer_of
from automl.training.cut import Trained, TurnedAdapter
from automl.training.runtime import Runtime

FACTORS = (0.1, 0.3, 1.0)
"""What is tried, as parts of the rate the adapter was trained at, or of the middle of its method's range."""
_BATCH = 8
_OF_THE_START = (INIT.name, FREEZE.name)
"""Settings of what a trial begins with, or trains, which a cut has behind it."""
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
    ground: Ground,
) -> Recovered:
    """Train every global cut for so many steps; with 0 none is. about: what the adapter's manifest says of its trial.

    The learning rate is that of `FACTORS` with the least loss on validation rows for the middle one of the cuts.
    Raises Diverged if none of them comes to an end, OutOfMemory, DataError.
    """
    if not steps:
        return Recovered(tuple(cuts), {}, None)
    chosen = [cut for cut in cuts if cut.kind in ("global", "asked")]
    hyper = _hyper(adapter, about.get("hyperparameters", {}), steps)
    course = Course(adapter=adapter, runtime=runtime, hyper=hyper, steps=steps, check_running=check_running)
    train = trainer_of(course, ground, [cut.ranks for cut in chosen])
    middle = sorted(chosen, key=lambda cut: cut.parameters)[len(chosen) // 2]
    tried = _ended(train([Job(middle.ranks, factor * hyper.learning_rate) for factor in FACTORS]))
    if not tried:
        raise Diverged(f"recovery at none of the learning rates up to {hyper.learning_rate:.2g} comes to an end")
    best = min(tried, key=lambda place: _number(tried[place].metrics["loss"]))
    rate = FACTORS[best] * hyper.learning_rate
    others = list(dict.fromkeys(cut.ranks for cut in chosen if cut.ranks != middle.ranks))
    results = dict(zip(others, map(_result, train([Job(ranks, rate) for ranks in others])), strict=True))
    results[middle.ranks] = tried[best]
    return Recovered(
        cuts=tuple(replace(cut, recovered=results[cut.ranks].metrics) if cut in chosen else cut for cut in cuts),
        trained={ranks: result.trained for ranks, result in results.items()},
        learning_rate=rate,
    )


def _ended(outcomes: Sequence[Result | Diverged]) -> dict[int, Result]:
    """Those that came to an end, by their place."""
    return {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, Result)}


def _result(outcome: Result | Diverged) -> Result:
    if isinstance(outcome, Diverged):
        raise outcome
    return outcome


def _hyper(adapter: TurnedAdapter, known: Mapping[str, Any], steps: int) -> Hyperparameters:
    """Optimizer of the trial as far as it is known; no dropout, no weight decay, warm-up and linear decay."""
    low, high = METHODS["lora"].learning_rates(sum(each.numel() for each in adapter.model.parameters()), steps)
    return Hyperparameters(
        learning_rate=float(known.get("learning_rate") or math.sqrt(low * high)),
        batch_size=int(known.get("batch_size") or _BATCH),
        weight_decay=0.0,
        warmup=_WARMUP,
        schedule="linear",
        own=tuple(each for each in Hyperparameters.of(known).own if each[0] not in _OF_THE_START),
    )


def _number(value: float) -> float:
    return value if math.isfinite(value) else math.inf
