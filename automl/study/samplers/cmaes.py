"""CMA-ES for numbers; categorical parameters are drawn at random beside it."""

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

_VARIANTS = ("use_separable_cma", "with_margin", "lr_adapt")


class CmaEsOptions(Options):
    """Covariance matrix adaptation; for numbers only, choices are drawn at random."""

    sigma0: Annotated[float, Field(gt=0, le=1000)] | None = None
    """First standard deviation; a sixth of the range if left out."""
    n_startup_trials: Startup = 1
    consider_pruned_trials: bool = True
    popsize: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """4 + floor(3 ln d) for d parameters if left out."""
    use_separable_cma: bool = False
    with_margin: bool = False
    lr_adapt: bool = False

    @model_validator(mode="after")
    def _one_variant(self) -> CmaEsOptions:
        given = [name for name in _VARIANTS if getattr(self, name)]
        if len(given) > 1:
            raise mistake("section", f"{' and '.join(given)} exclude each other")
        return self


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from optuna.samplers import CmaEsSampler, RandomSampler

    return CmaEsSampler(
        seed=context.seed,
        independent_sampler=RandomSampler(seed=context.seed),
        warn_independent_sampling=False,
        # see automl.study.sampling.view_for: Optuna would mix values of different steps
        **{**options, "consider_pruned_trials": False},
    )


CMAES = Sampler(options=CmaEsOptions, build=_build, packages=("cmaes",), from_complete=True, objectives=1)
