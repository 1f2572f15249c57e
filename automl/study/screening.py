"""The gate for values: nothing that is not finite, or cannot be, gets near SQL or the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from automl.trial import Measurement, StopReason, TrialFailure


class Screened(NamedTuple):
    """Measurements that may be stored, and the failures of trials whose measurement may not."""

    sound: list[Measurement]
    failures: list[TrialFailure]


def screen(
    measurements: Iterable[Measurement],
    is_new: Callable[[Measurement], bool],
    *,
    metric: str,
    bounds: tuple[float, float],
) -> Screened:
    """Sort new measurements; of two for one (trial, step) the first counts, and nothing after a trial's failure."""
    sound: dict[tuple[int, int], Measurement] = {}
    failures: dict[int, TrialFailure] = {}
    for measurement in measurements:
        if measurement.trial in failures or not is_new(measurement):
            continue
        failure = _failure(measurement, metric, bounds)
        if failure is None:
            sound.setdefault((measurement.trial, measurement.step), measurement)
        else:
            failures[measurement.trial] = failure
    return Screened(list(sound.values()), list(failures.values()))


def _failure(measurement: Measurement, metric: str, bounds: tuple[float, float]) -> TrialFailure | None:
    low, high = bounds
    reason = StopReason.DIVERGED
    value = measurement.metrics.get(metric)
    strange = [f"{name} is {number}" for name, number in measurement.metrics.items() if not math.isfinite(number)]
    if value is None:
        reason = StopReason.ERROR
        message = f"objective {metric!r} was not measured; there is {', '.join(measurement.metrics) or 'nothing'}"
    elif strange:
        message = ", ".join(strange)
    elif not low <= value <= high:
        message = f"{metric} is {value}, outside {low} ... {high}"
    else:
        return None
    trial, step, tokens = measurement.trial, measurement.step, measurement.tokens
    return TrialFailure(trial=trial, step=step, reason=reason, message=message, tokens=tokens)
