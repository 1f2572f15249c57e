"""The sampler that a search asks, made from its name and options.

A sampler of a finite space, of one with constraints or where memory may be short is wrapped by `ConstrainedSampler`;
any other is Optuna's own object. Which samplers there are: `automl.space.entries`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Set
from importlib.util import find_spec
from typing import NamedTuple

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from automl.errors import MissingExtraError
from automl.space.entries import SAMPLERS, Sampler, for_objectives
from automl.space.points import MOST_CONFIGURATIONS, count_configurations
from automl.space.spec import SearchSettings, SearchSpace
from automl.study.constrained import ConstrainedSampler
from automl.study.feasibility import Feasibility
from automl.study.grid import Configurations, GridSampler
from automl.study.registry import lookup, merge_options, refuse
from automl.study.seeding import derive_seed, sampler_seed
from automl.study.shown import View, parked_as_pruned, unfinished_as_complete


class SamplerContext(NamedTuple):
    """What a sampler may depend on. seed: differs by run; study_seed: the same in all runs of the study."""

    space: SearchSpace
    feasibility: Feasibility
    seed: int
    study_seed: int


def make_sampler(settings: SearchSettings, space: SearchSpace, feasibility: Feasibility, *, run: int) -> BaseSampler:
    """The sampler that `search:` names, seeded for this run.

    Raises ConfigError for an unknown name, an unknown or an impossible option, and MissingExtraError if a package is
    missing.
    """
    entry = lookup(settings.sampler, SAMPLERS)
    if entry.objectives < 2 and settings.also_minimize is not None:
        message = f"{settings.sampler} knows one objective only; with also_minimize use {', '.join(for_objectives(2))}"
        raise refuse("sampler", message)
    require(settings.sampler, entry)
    options = merge_options("sampler", settings.sampler_options, entry.options.defaults())
    context = SamplerContext(
        space, feasibility, sampler_seed(settings.seed, run), derive_seed("sampler", settings.seed)
    )
    try:
        with warnings.catch_warnings():
            # QMC and `group`, which fits multivariate TPE to conditional spaces, are experimental to Optuna 5.0 still.
            warnings.simplefilter("ignore", ExperimentalWarning)
            base: BaseSampler = entry.build(context, options)
    except (TypeError, ValueError) as error:
        raise refuse("sampler_options", str(error)) from error
    finite = _finite(context)
    if isinstance(base, GridSampler) or (finite is None and not space.constraints and feasibility.room is None):
        return base
    return ConstrainedSampler(
        base, space, feasibility, proposals=entry.proposals, seed=context.seed, configurations=finite
    )


def view_for(settings: SearchSettings, parked: Callable[[], Set[int]], *, can_park: bool) -> View | None:
    """How the sampler is to see trials that were not trained to the last step; None: as they are.

    parked: numbers of the parked trials, as they are when it is called. `cmaes` may be told by its own option that only
    what was trained to the end counts.
    """
    wants_complete = settings.sampler_options.get("consider_pruned_trials") is False
    if settings.pruner != "none" and SAMPLERS[settings.sampler].from_complete and not wants_complete:
        return unfinished_as_complete
    return parked_as_pruned(parked) if can_park else None


def configurations_of(sampler: BaseSampler) -> Configurations | None:
    """The configurations a sampler of `make_sampler` chooses from, None if they cannot be listed."""
    return sampler.configurations if isinstance(sampler, (GridSampler, ConstrainedSampler)) else None


def _finite(context: SamplerContext) -> Configurations | None:
    count = count_configurations(context.space)
    if count is None or not 0 < count <= MOST_CONFIGURATIONS or not context.space.parameters:
        return None
    return Configurations(context.space, context.feasibility, seed=context.study_seed)


def require(name: str, sampler: Sampler) -> None:
    """Raise MissingExtraError if a package that the sampler needs cannot be imported."""
    missing = sampler.missing(lambda package: find_spec(package) is not None)
    if missing:
        raise MissingExtraError(f"sampler {name!r} needs the package {' and '.join(missing)}; install {sampler.extra}")
