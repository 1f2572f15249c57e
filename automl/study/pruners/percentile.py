"""Stops a trial that is worse than the median, or another percentile, of complete trials at the same step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from automl.space.entries import Pruner
from automl.space.options import Options, Startup
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class MedianOptions(Options):
    """Stops a trial that is worse than the median of complete trials at the same step."""

    n_startup_trials: Startup = 5
    """Complete trials before it acts at all."""
    n_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Two evaluations if left out."""
    interval_steps: Annotated[int, Field(ge=1)] | None = None
    """Every evaluation if left out."""
    n_min_trials: Annotated[int, Field(ge=1)] = 1


class PercentileOptions(Options):
    """Like median, with another percentile."""

    percentile: Annotated[float, Field(ge=0, le=100)] = 33.0
    """Trials worse than this percentile of complete trials are stopped: 25 keeps the best quarter."""
    n_startup_trials: Startup = 5
    n_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    interval_steps: Annotated[int, Field(ge=1)] | None = None
    n_min_trials: Annotated[int, Field(ge=1)] = 1


def _median(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import MedianPruner

    return MedianPruner(**options)


def _percentile(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import PercentilePruner

    return PercentilePruner(**options)


def by_grid(settings: SearchSettings) -> dict[str, int]:
    """Two evaluations before it acts, then at each."""
    return {"n_warmup_steps": 2 * settings.evaluate_every, "interval_steps": settings.evaluate_every}


def after_warmup(settings: SearchSettings, options: Mapping[str, Any]) -> int:
    """The step from which on it acts."""
    return int(options["n_warmup_steps"])


MEDIAN = Pruner(options=MedianOptions, build=_median, by_grid=by_grid, first_step=after_warmup)
PERCENTILE = Pruner(options=PercentileOptions, build=_percentile, by_grid=by_grid, first_step=after_warmup)
