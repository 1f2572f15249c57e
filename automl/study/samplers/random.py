"""Independent uniform draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from automl.space.entries import Sampler
from automl.space.options import Options

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class RandomOptions(Options):
    """Independent uniform draws."""


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=context.seed)


RANDOM = Sampler(options=RandomOptions, build=_build)
