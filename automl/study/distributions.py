"""Parameters of a search space as Optuna's distributions, and the order in which a trial asks for them."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial

from automl.errors import SpaceChangedError
from automl.space.assemble import active_parameters
from automl.space.points import last_point
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchSpace
from automl.trial import Scalar


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's distribution of one parameter; `high` is lowered to the last point of the grid if there is a step."""
    match parameter:
        case FloatParameter(low=low, step=step, log=log):
            return FloatDistribution(low, last_point(parameter), log=log, step=step)
        case IntParameter(low=low, step=step, log=log):
            return IntDistribution(low, int(last_point(parameter)), log=log, step=step)
        case CategoricalParameter(choices=choices):
            return CategoricalDistribution(choices)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Name -> distribution of every parameter, in declared order, active or not."""
    return {parameter.name: distribution(parameter) for parameter in space.parameters}


def suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Scalar]:
    """Ask Optuna for every active parameter in declared order; a parameter that has a value keeps it.

    Conditions are decided by the values before them, so an inactive parameter is never stored.
    """
    params: dict[str, Scalar] = {}
    for parameter in active_parameters(space, params):
        params[parameter.name] = _suggested(trial, parameter.name, distribution(parameter))
    return params


def known_values(trial: FrozenTrial) -> Mapping[str, Scalar]:
    """Values the trial has before it is sampled: those enqueued with it, and those stored already."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def is_conditional(space: SearchSpace) -> bool:
    """Whether some parameter exists only for some values of another."""
    return any(parameter.when is not None for parameter in space.parameters)


def check_compatible(space: SearchSpace, stored: dict[str, BaseDistribution]) -> None:
    """Raise SpaceChangedError if a stored parameter has a kind, scale or set of choices Optuna cannot continue."""
    for name, now in distributions(space).items():
        if name not in stored:
            continue
        try:
            check_distribution_compatibility(stored[name], now)
        except ValueError as error:
            raise SpaceChangedError(
                f"parameter {name!r} cannot change from {stored[name]} to {now} within a study"
                f" ({str(error).rstrip('.')}); choose another study name"
            ) from error


def _suggested(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Scalar:
    match dist:
        case FloatDistribution():
            return trial.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)
        case IntDistribution():
            return trial.suggest_int(name, dist.low, dist.high, step=dist.step, log=dist.log)
        case CategoricalDistribution():
            choice = trial.suggest_categorical(name, dist.choices)
            assert choice is not None  # a space file has no null choices
            return choice
    raise AssertionError(dist)
