"""Samplers by name, their options and what they need installed.

Options are the keyword arguments of Optuna's classes. A sampler of a finite space or of one with constraints is
wrapped by `ConstrainedSampler`; any other is Optuna's own object.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

from automl.errors import MissingExtraError
from automl.space.points import MOST_CONFIGURATIONS, count_configurations
from automl.space.spec import SearchSettings, SearchSpace
from automl.study.constrained import ConstrainedSampler
from automl.study.distributions import is_conditional
from automl.study.feasibility import Feasibility
from automl.study.grid import Configurations, GridSampler
from automl.study.registry import Options, lookup, merge_options, refuse
from automl.study.seeding import derive_seed, sampler_seed
from automl.study.shown import View, parked_as_pruned, unfinished_as_complete

EXTRA = "automl-lora[samplers]"


class SamplerContext(NamedTuple):
    """What a sampler may depend on. seed: differs by run; study_seed: the same in all runs of the study."""

    space: SearchSpace
    feasibility: Feasibility
    seed: int
    study_seed: int


class SamplerEntry(NamedTuple):
    """How to build a sampler, its options with their defaults, and the packages it needs beyond Optuna.

    proposals: tries it has per trial to satisfy the constraints before configurations are drawn at random.
    from_complete: it learns from COMPLETE trials only.
    """

    build: Callable[[SamplerContext, Mapping[str, Any]], BaseSampler]
    defaults: Options
    packages: tuple[str, ...] = ()
    proposals: int = 20
    from_complete: bool = False


def make_sampler(settings: SearchSettings, space: SearchSpace, feasibility: Feasibility, *, run: int) -> BaseSampler:
    """The sampler that `search:` names, seeded for this run.

    Raises ConfigError for an unknown name, an unknown or an impossible option, and MissingExtraError if a package is
    missing.
    """
    entry = lookup("sampler", settings.sampler, SAMPLERS)
    if settings.sampler == "cmaes" and settings.also_minimize is not None:
        raise refuse(
            "sampler", "cmaes knows one objective only; with also_minimize use tpe, nsga2, gp, qmc, random or grid"
        )
    require(settings.sampler, entry.packages)
    options = merge_options("sampler", settings.sampler_options, entry.defaults)
    context = SamplerContext(
        space, feasibility, sampler_seed(settings.seed, run), derive_seed("sampler", settings.seed)
    )
    try:
        with warnings.catch_warnings():
            # QMC and `group`, which fits multivariate TPE to conditional spaces, are experimental to Optuna 5.0 still.
            warnings.simplefilter("ignore", ExperimentalWarning)
            base = entry.build(context, options)
    except (TypeError, ValueError) as error:
        raise refuse("sampler_options", str(error)) from error
    finite = _finite(context)
    if isinstance(base, GridSampler) or (finite is None and not space.constraints):
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


def require(sampler: str, packages: Sequence[str]) -> None:
    """Raise MissingExtraError if one of the packages cannot be imported."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtraError(f"sampler {sampler!r} needs the package {' and '.join(missing)}; install {EXTRA}")


def _tpe(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    """Multivariate TPE; in a conditional space by groups of parameters that occur together."""
    group = options["multivariate"] and is_conditional(context.space)
    return TPESampler(seed=context.seed, **{"group": group, **options})


def _gp(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    independent = RandomSampler(seed=context.seed)
    return GPSampler(seed=context.seed, independent_sampler=independent, warn_independent_sampling=False, **options)


def _cmaes(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    """CMA-ES for numbers; categorical parameters are drawn at random beside it."""
    independent = RandomSampler(seed=context.seed)
    return CmaEsSampler(
        seed=context.seed,
        independent_sampler=independent,
        warn_independent_sampling=False,
        **{**options, "consider_pruned_trials": False},  # see view_for: Optuna would mix values of different steps
    )


def _qmc(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    """One scrambled sequence per study: its position is kept in the database, so its seed must not change by run."""
    independent = RandomSampler(seed=context.seed)
    return QMCSampler(
        seed=context.study_seed, independent_sampler=independent, warn_independent_sampling=False, **options
    )


def _grid(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    return GridSampler(context.space, context.feasibility, seed=context.study_seed)


SAMPLERS: dict[str, SamplerEntry] = {
    "tpe": SamplerEntry(
        _tpe,
        {
            "n_startup_trials": 10,
            "n_ei_candidates": 24,
            "multivariate": True,
            "group": None,  # on in a conditional space
            "constant_liar": True,
        },
    ),
    "gp": SamplerEntry(
        _gp,
        {"n_startup_trials": 10, "deterministic_objective": False},
        ("scipy", "torch"),
        proposals=2,
        from_complete=True,
    ),
    "cmaes": SamplerEntry(
        _cmaes,
        {
            "n_startup_trials": 1,
            "sigma0": None,  # a sixth of the range
            "popsize": None,  # 4 + floor(3 ln d) for d parameters
            "consider_pruned_trials": True,
            "use_separable_cma": False,
            "with_margin": False,
            "lr_adapt": False,
        },
        ("cmaes",),
        from_complete=True,
    ),
    "qmc": SamplerEntry(_qmc, {"qmc_type": "sobol", "scramble": True}, ("scipy",)),
    "random": SamplerEntry(lambda context, _: RandomSampler(seed=context.seed), {}),
    "grid": SamplerEntry(_grid, {}),
    "nsga2": SamplerEntry(
        lambda context, options: NSGAIISampler(seed=context.seed, **options),
        {
            "population_size": 10,  # Optuna's 50 would never leave the first, random generation of a usual search
            "mutation_prob": None,  # one parameter per child on average
            "crossover_prob": 0.9,
            "swapping_prob": 0.5,
        },
        from_complete=True,
    ),
}
"""Every sampler `search.sampler` may name."""
