"""Pruners by name, and their options.

Options are the keyword arguments of Optuna's classes where there is one. Steps are optimizer steps on the evaluation
grid, never calls of a worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)

from automl.space.spec import SearchSettings
from automl.study.curves import rungs
from automl.study.halving import CLOSING_FACTOR, HalvingPruner
from automl.study.peer import PeerPruner
from automl.study.registry import Options, lookup, merge_options, refuse
from automl.trial import Scalar


class PrunerEntry(NamedTuple):
    """How to build a pruner, and its options with their defaults (a function of the grid)."""

    build: Callable[[SearchSettings, Mapping[str, Any]], BasePruner]
    defaults: Callable[[SearchSettings], Options]


def make_pruner(settings: SearchSettings) -> BasePruner:
    """The pruner that `search:` names. Raises ConfigError for an unknown name, an unknown or an impossible option."""
    entry = lookup("pruner", settings.pruner, PRUNERS)
    if settings.pruner != "none" and settings.also_minimize is not None:
        raise refuse("pruner", f"{settings.pruner!r} judges by one objective; with also_minimize it must be none")
    options = merge_options("pruner", settings.pruner_options, entry.defaults(settings))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # PatientPruner, still so in Optuna 5.0
            return entry.build(settings, options)
    except (TypeError, ValueError) as error:
        raise refuse("pruner_options", str(error)) from error


class Survival(NamedTuple):
    """How many trials are to go on from each rung: the best one in `factor`, at least `least`."""

    rungs: tuple[int, ...]
    factor: float
    least: int

    def of(self, trials: float) -> float:
        """How many of so many go on, on average."""
        return min(trials, max(trials / self.factor, self.least))


def survival_of(settings: SearchSettings) -> Survival | None:
    """What each rung is meant to keep in the end; without pruning everything. None where that cannot be said."""
    if settings.pruner == "none":
        return Survival((settings.steps,), 1.0, 0)
    if settings.pruner not in ("halving", "peer"):
        return None
    options = merge_options("pruner", settings.pruner_options, PRUNERS[settings.pruner].defaults(settings))
    factor = float(options["reduction_factor"])
    if settings.pruner == "halving":
        factor = min(factor, CLOSING_FACTOR)  # what counts in the end, once all trials have started
    steps = rungs(settings.evaluate_every, settings.steps, int(options["first_rung"]))
    return Survival(steps, factor, int(options.get("finalists", 0)))


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


def _no_options(settings: SearchSettings) -> Options:
    return {}


def _peer_defaults(settings: SearchSettings) -> Options:
    return {"first_rung": 2, "reduction_factor": 3, "min_peers": 4, "guard": 0.01}


def _peer(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    return PeerPruner(evaluate_every=settings.evaluate_every, steps=settings.steps, **options)


def _parking_defaults(settings: SearchSettings) -> Options:
    return {
        "first_rung": 2,
        "reduction_factor": 3,
        "explore": 0.5,
        "guard": 0.01,
        "expected_gain": 0.5,
        "finalists": 3,
    }


def _parking(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    return HalvingPruner(evaluate_every=settings.evaluate_every, steps=settings.steps, **options)


def _median_defaults(settings: SearchSettings) -> Options:
    return {
        "n_startup_trials": 5,  # COMPLETE trials before it acts at all
        "n_warmup_steps": 2 * settings.evaluate_every,
        "interval_steps": settings.evaluate_every,
        "n_min_trials": 1,
    }


def _percentile_defaults(settings: SearchSettings) -> Options:
    return {"percentile": 33.0, **_median_defaults(settings)}


def _halving_defaults(settings: SearchSettings) -> Options:
    return {
        "min_resource": 2 * settings.evaluate_every,
        "reduction_factor": 3,
        "min_early_stopping_rate": 0,
        "bootstrap_count": 0,
    }


def _hyperband_defaults(settings: SearchSettings) -> Options:
    most = settings.pruner_options.get("max_resource", settings.steps)
    least = 2 * settings.evaluate_every
    return {
        "min_resource": min(least, int(most)) if most != "auto" else least,
        "max_resource": settings.steps,
        "reduction_factor": 3,
        "bootstrap_count": 0,
    }


def _hyperband(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    least, most = options["min_resource"], options["max_resource"]
    if most != "auto" and not 1 <= least <= most:
        raise ValueError(f"min_resource {least} is not in 1 ... max_resource {most}")
    return HyperbandPruner(**options)


def _patient_defaults(settings: SearchSettings) -> Options:
    return {"wrapped": "median", "patience": 2, "min_delta": 0.0}  # patience counts evaluations


def _patient(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    """Ask the wrapped pruner (with its default options) only when there was no gain for `patience` evaluations."""
    name = options["wrapped"]
    wrapped = lookup("pruner_options.wrapped", name, _WRAPPABLE)
    inner = None if name == "none" else wrapped.build(settings, merge_options("pruner", {}, wrapped.defaults(settings)))
    return PatientPruner(inner, options["patience"], options["min_delta"])


def _threshold_defaults(settings: SearchSettings) -> Options:
    return {
        "lower": None,
        "upper": None,
        "n_warmup_steps": 2 * settings.evaluate_every,
        "interval_steps": settings.evaluate_every,
    }


def _threshold(settings: SearchSettings, options: Mapping[str, Scalar]) -> BasePruner:
    if "lower" not in options and "upper" not in options:
        raise ValueError("threshold needs lower, upper or both")
    limits: Mapping[str, Any] = {"lower": None, "upper": None, **options}
    return ThresholdPruner(**limits)


PRUNERS: dict[str, PrunerEntry] = {
    "halving": PrunerEntry(_parking, _parking_defaults),
    "peer": PrunerEntry(_peer, _peer_defaults),
    "median": PrunerEntry(lambda _, options: MedianPruner(**options), _median_defaults),
    "percentile": PrunerEntry(lambda _, options: PercentilePruner(**options), _percentile_defaults),
    "successive-halving": PrunerEntry(lambda _, options: SuccessiveHalvingPruner(**options), _halving_defaults),
    "hyperband": PrunerEntry(_hyperband, _hyperband_defaults),
    "patient": PrunerEntry(_patient, _patient_defaults),
    "threshold": PrunerEntry(_threshold, _threshold_defaults),
    "none": PrunerEntry(lambda settings, options: NopPruner(), _no_options),
}
"""Every pruner `search.pruner` may name."""

_WRAPPABLE = {name: entry for name, entry in PRUNERS.items() if name not in ("halving", "patient", "threshold")}
