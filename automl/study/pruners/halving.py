"""Parks trials at rungs and promotes the best, the default: `automl.study.halving`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from automl.space.entries import Pruner, Survival
from automl.space.options import Count, Options, Share
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class HalvingOptions(Options):
    """Parks trials at rungs and promotes the best; half of all training goes to new trials. The default."""

    first_rung: Count = 2
    """Evaluations before a trial is parked for the first time."""
    reduction_factor: Annotated[float, Field(gt=1, le=100)] = 3
    """At each rung the best 1/reduction_factor may go on."""
    explore: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of all steps that goes to new trials."""
    guard: Share = 0.01
    """Share by which a trial must beat the median of the first rung to go on while new trials can be started."""
    expected_gain: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Share of the last doubling's gain that is expected again when trials are ranked."""
    finalists: Annotated[int, Field(ge=1, le=1000)] = 3
    """Trials that go on at each rung at the end of the search, at least."""


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from automl.study.halving import HalvingPruner

    return HalvingPruner(evaluate_every=settings.evaluate_every, steps=settings.steps, **options)


def _survival(settings: SearchSettings, options: Mapping[str, Any]) -> Survival:
    """What counts in the end, once all trials have started."""
    from automl.study.curves import rungs
    from automl.study.halving import CLOSING_FACTOR

    steps = rungs(settings.evaluate_every, settings.steps, options["first_rung"])
    return Survival(steps, min(float(options["reduction_factor"]), CLOSING_FACTOR), options["finalists"])


HALVING = Pruner(
    options=HalvingOptions,
    build=_build,
    first_step=lambda settings, options: options["first_rung"] * settings.evaluate_every,
    survival=_survival,
    wrappable=False,  # it parks, which a pruner around it cannot pass on
)
