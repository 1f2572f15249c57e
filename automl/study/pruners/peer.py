"""Stops a trial that ranks low among all that reached the same rung: `automl.study.peer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from automl.space.entries import Pruner, Survival
from automl.space.options import Count, Options, Share
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class PeerOptions(Options):
    """Stops a trial that ranks low among all that reached the same rung, running ones included."""

    first_rung: Count = 2
    """Evaluations before the first decision."""
    reduction_factor: Annotated[float, Field(gt=1, le=100)] = 3
    """At each rung the best 1/reduction_factor go on."""
    min_peers: Count = 4
    """Trials that must have reached a rung before anyone is stopped there."""
    guard: Share = 0.01
    """Share by which a trial must beat the median of the first rung, against chance."""


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from automl.study.peer import PeerPruner

    return PeerPruner(evaluate_every=settings.evaluate_every, steps=settings.steps, **options)


def _survival(settings: SearchSettings, options: Mapping[str, Any]) -> Survival:
    from automl.study.curves import rungs

    steps = rungs(settings.evaluate_every, settings.steps, options["first_rung"])
    return Survival(steps, float(options["reduction_factor"]), 0)


PEER = Pruner(
    options=PeerOptions,
    build=_build,
    first_step=lambda settings, options: options["first_rung"] * settings.evaluate_every,
    survival=_survival,
)
