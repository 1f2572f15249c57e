"""The pruner of a search, made from its name and options, and how many trials it is meant to keep.

Steps are optimizer steps on the evaluation grid, never calls of a worker. Which pruners there are:
`automl.space.entries`.
"""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner

from automl.space.entries import PRUNERS, Survival
from automl.space.spec import SearchSettings
from automl.study.registry import lookup, merge_options, refuse


def make_pruner(settings: SearchSettings) -> BasePruner:
    """The pruner that `search:` names. Raises ConfigError for an unknown name, an unknown or an impossible option."""
    entry = lookup(settings.pruner, PRUNERS)
    if settings.pruner != "none" and settings.also_minimize is not None:
        raise refuse("pruner", f"{settings.pruner!r} judges by one objective; with also_minimize it must be none")
    options = merge_options("pruner", settings.pruner_options, entry.defaults(settings))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # PatientPruner, still so in Optuna 5.0
            pruner: BasePruner = entry.build(settings, options)
            return pruner
    except (TypeError, ValueError) as error:
        raise refuse("pruner_options", str(error)) from error


def survival_of(settings: SearchSettings) -> Survival | None:
    """What each rung is meant to keep in the end; without pruning everything. None where that cannot be said."""
    entry = lookup(settings.pruner, PRUNERS)
    return entry.survival(settings, entry.in_use(settings))


def expected_share(settings: SearchSettings) -> float | None:
    """Share of the steps of an unpruned search that is left if each rung keeps exactly the share it is meant to.

    In (0, 1]; a guess made beforehand: ties, the guard and the first trials, which have few peers, change it. None for
    a pruner of which that cannot be said, and without one.
    """
    survival = survival_of(settings)
    if survival is None or settings.pruner == "none":
        return None
    alive, reached, spent = float(settings.trials), 0, 0.0
    for rung in survival.rungs:
        spent += alive * (rung - reached)
        alive, reached = survival.of(alive), rung
    return spent / settings.trials / settings.steps
