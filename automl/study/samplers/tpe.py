"""Tree-structured Parzen estimator, the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from automl.space.entries import Sampler
from automl.space.options import Options, Startup
from automl.space.schema_base import mistake

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class TpeOptions(Options):
    """Tree-structured Parzen estimator: the usual choice."""

    n_startup_trials: Startup = 10
    n_ei_candidates: Annotated[int, Field(ge=1, le=10_000)] = 24
    multivariate: bool = True
    group: bool | None = None
    """Parameters in groups that occur together; on in a conditional space."""
    constant_liar: bool = True

    @model_validator(mode="after")
    def _group_needs_multivariate(self) -> TpeOptions:
        if self.group and not self.multivariate:
            raise mistake("section", "group: true needs multivariate: true")
        return self


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from optuna.samplers import TPESampler

    from automl.study.distributions import is_conditional

    group = options["multivariate"] and is_conditional(context.space)
    return TPESampler(seed=context.seed, **{"group": group, **options})


TPE = Sampler(options=TpeOptions, build=_build)
