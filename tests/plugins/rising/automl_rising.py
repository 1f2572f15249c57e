"""A pruner that stops a trial once it is worse than it was when it was first measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from automl.space.entries import Pruner
from automl.space.options import Options
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class RisingOptions(Options):
    """Stops trials that became worse."""

    by: Annotated[float, Field(ge=0)] = 0.0
    """How much worse than at first a trial may be."""


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import BasePruner
    from optuna.study import StudyDirection

    class RisingPruner(BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            values = trial.intermediate_values
            change = values[max(values)] - values[min(values)]
            return bool((change if study.direction is StudyDirection.MINIMIZE else -change) > options["by"])

    return RisingPruner()


RISING = Pruner(options=RisingOptions, build=_build)
