"""Quasi-random sequence: an even coverage, without learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from automl.space.entries import Sampler
from automl.space.options import Options

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class QmcOptions(Options):
    """Quasi-random sequence: an even coverage, without learning."""

    qmc_type: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    """One scrambled sequence per study: its position is kept in the database, so its seed must not change by run."""
    from optuna.samplers import QMCSampler, RandomSampler

    independent = RandomSampler(seed=context.seed)
    return QMCSampler(
        seed=context.study_seed, independent_sampler=independent, warn_independent_sampling=False, **options
    )


QMC = Sampler(options=QmcOptions, build=_build, packages=("scipy",))
