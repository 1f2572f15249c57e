"""Several successive halvings side by side, as in Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from automl.space.entries import Pruner
from automl.space.options import AutoOrCount, Options
from automl.space.schema_base import mistake
from automl.space.spec import SearchSettings
from automl.study.pruners.successive_halving import from_resource

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class HyperbandOptions(Options):
    """Several successive halvings side by side, as in Optuna."""

    min_resource: Annotated[int, Field(ge=1)] | None = None
    """Two evaluations if left out."""
    max_resource: AutoOrCount | None = None
    """Steps of a trial if left out."""
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    bootstrap_count: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _bootstrap_needs_resource(self) -> HyperbandOptions:
        if self.bootstrap_count and self.max_resource == "auto":
            raise mistake("section", "bootstrap_count needs max_resource as a number of steps, not auto")
        return self


def _check(section: HyperbandOptions, steps: int) -> tuple[str, str] | None:
    least, most = section.min_resource, section.max_resource
    if least is None or most == "auto" or least <= (most or steps):
        return None
    largest = f"max_resource {most}" if most else f"steps {steps}, the largest resource"
    return "min_resource", f"{least} is above {largest}"


def _by_grid(settings: SearchSettings) -> dict[str, int]:
    most = settings.pruner_options.get("max_resource", settings.steps)
    least = 2 * settings.evaluate_every
    return {"min_resource": min(least, int(most)) if most != "auto" else least, "max_resource": settings.steps}


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import HyperbandPruner

    least, most = options["min_resource"], options["max_resource"]
    if most != "auto" and not 1 <= least <= most:
        raise ValueError(f"min_resource {least} is not in 1 ... max_resource {most}")
    return HyperbandPruner(**options)


HYPERBAND = Pruner(options=HyperbandOptions, build=_build, by_grid=_by_grid, check=_check, first_step=from_resource)
