"""Stops a trial whose value leaves fixed bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from automl.space.entries import Pruner
from automl.space.options import Options
from automl.space.schema_base import mistake
from automl.space.spec import SearchSettings
from automl.study.pruners.percentile import after_warmup, by_grid

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class ThresholdOptions(Options):
    """Stops a trial whose value leaves fixed bounds."""

    lower: float | None = None
    upper: float | None = None
    n_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    interval_steps: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> ThresholdOptions:
        if self.lower is None and self.upper is None:
            raise mistake("section", "threshold needs lower, upper, or both")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise mistake("section", f"lower {self.lower:g} is not below upper {self.upper:g}")
        return self


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import ThresholdPruner

    if "lower" not in options and "upper" not in options:
        raise ValueError("threshold needs lower, upper or both")
    limits: Mapping[str, Any] = {"lower": None, "upper": None, **options}
    return ThresholdPruner(**limits)


THRESHOLD = Pruner(options=ThresholdOptions, build=_build, by_grid=by_grid, first_step=after_warmup, wrappable=False)
