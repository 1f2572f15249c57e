"""Gaussian process, for few and slow trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from automl.space.entries import Sampler
from automl.space.options import Options, Startup

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class GpOptions(Options):
    """Gaussian process; for few, slow trials."""

    n_startup_trials: Startup = 10
    deterministic_objective: bool = False


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from optuna.samplers import GPSampler, RandomSampler

    independent = RandomSampler(seed=context.seed)
    return GPSampler(seed=context.seed, independent_sampler=independent, warn_independent_sampling=False, **options)


GP = Sampler(options=GpOptions, build=_build, packages=("scipy", "torch"), proposals=2, from_complete=True)
