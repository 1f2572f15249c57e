"""Genetic algorithm NSGA-II."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from automl.space.entries import Sampler
from automl.space.options import Options, Share

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class NsgaOptions(Options):
    """Genetic algorithm NSGA-II."""

    population_size: Annotated[int, Field(ge=2, le=100_000)] = 10  # Optuna's 50 would never leave the first, random one
    mutation_prob: Share | None = None
    """One parameter per child on average if left out."""
    crossover_prob: Share = 0.9
    swapping_prob: Share = 0.5


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=context.seed, **options)


NSGA2 = Sampler(options=NsgaOptions, build=_build, from_complete=True)
