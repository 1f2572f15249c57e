"""Asynchronous successive halving, as in Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from automl.space.entries import Pruner
from automl.space.options import AutoOrCount, Options
from automl.space.schema_base import mistake
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class SuccessiveHalvingOptions(Options):
    """Asynchronous successive halving, as in Optuna."""

    min_resource: AutoOrCount | None = None
    """Two evaluations if left out."""
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    min_early_stopping_rate: Annotated[int, Field(ge=0, le=100)] = 0
    bootstrap_count: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _bootstrap_needs_resource(self) -> SuccessiveHalvingOptions:
        if self.bootstrap_count and self.min_resource == "auto":
            raise mistake("section", "bootstrap_count needs min_resource as a number of steps, not auto")
        return self


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import SuccessiveHalvingPruner

    return SuccessiveHalvingPruner(**options)


def from_resource(settings: SearchSettings, options: Mapping[str, Any]) -> int | None:
    """The first rung; None where Optuna chooses it."""
    return None if options["min_resource"] == "auto" else int(options["min_resource"])


SUCCESSIVE_HALVING = Pruner(
    options=SuccessiveHalvingOptions,
    build=_build,
    by_grid=lambda settings: {"min_resource": 2 * settings.evaluate_every},
    first_step=from_resource,
)
