"""Every configuration of a finite space once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from automl.space.entries import Sampler
from automl.space.options import Options

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class GridOptions(Options):
    """Every combination once; needs choices, whole numbers or steps."""


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from automl.study.grid import GridSampler

    return GridSampler(context.space, context.feasibility, seed=context.study_seed)


GRID = Sampler(options=GridOptions, build=_build)
