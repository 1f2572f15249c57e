"""Pruners by name, their options, and the seam for pruners that can park a trial instead of stopping it.

Options are the keyword arguments of Optuna's classes where there is one. Steps are optimizer steps on the evaluation
grid, never calls of a worker.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
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
from optuna.trial import FrozenTrial

from automl.space.spec import SearchSettings
from automl.study.peer import PeerPruner
from automl.study.registry import Options, lookup, merge_options, refuse
from automl.trial import Action, Decision, Scalar


class ParkingPruner(BasePruner):
    """A pruner that may also park a trial, and later promote it: seam for policies that pause and resume.

    A parked trial keeps its slot file and stays RUNNING in Optuna, which knows no pause; it becomes PRUNED when the
    sweep ends. Implementations keep no state that a new driver could not read from the study.
    """

    @abstractmethod
    def decide(self, study: optuna.Study, trial: FrozenTrial) -> Decision:
        """CONTINUE, PARK or PRUNE for a trial that has reported and is not at its last step."""

    @abstractmethod
    def promote(self, study: optuna.Study, parked: Sequence[int]) -> int | None:
        """The parked trial (numbers in ascending order) that should go on next, None if none should now."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Optuna's question, for use outside our study: only PRUNE stops a trial."""
        return self.decide(study, trial).action is Action.PRUNE


class PrunerEntry(NamedTuple):
    """How to build a pruner, and its options with their defaults (a function of the grid)."""

    build: Callable[[SearchSettings, Mapping[str, Any]], BasePruner]
    defaults: Callable[[SearchSettings], Options]


def make_pruner(settings: SearchSettings) -> BasePruner:
    """The pruner that `search:` names. Raises ConfigError for an unknown name, an unknown or an impossible option."""
    entry = lookup("pruner", settings.pruner, PRUNERS)
    options = merge_options("pruner", settings.pruner_options, entry.defaults(settings))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # PatientPruner, still so in Optuna 5.0
            return entry.build(settings, options)
    except (TypeError, ValueError) as error:
        raise refuse("pruner_options", str(error)) from error


def expected_share(settings: SearchSettings) -> float:
    """Share of the steps of an unpruned search that is left if the peer pruner keeps exactly its share at every rung.

    In (0, 1]; a guess made beforehand: ties, the guard and the first trials, which have too few peers, change it.
    """
    options = merge_options("pruner", settings.pruner_options, _peer_defaults(settings))
    rung = int(options["first_rung"]) * settings.evaluate_every
    alive, reached, spent = 1.0, 0, 0.0
    while rung < settings.steps:
        spent += alive * (rung - reached)
        alive, reached, rung = alive / float(options["reduction_factor"]), rung, rung * 2
    return (spent + alive * (settings.steps - reached)) / settings.steps


def _no_options(settings: SearchSettings) -> Options:
    return {}


def _peer_defaults(settings: SearchSettings) -> Options:
    return {"first_rung": 2, "reduction_factor": 3, "min_peers": 4, "guard": 0.01}


def _peer(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    return PeerPruner(evaluate_every=settings.evaluate_every, steps=settings.steps, **options)


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
    return {
        "min_resource": 2 * settings.evaluate_every,
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

_WRAPPABLE = {name: entry for name, entry in PRUNERS.items() if name not in ("patient", "threshold")}
