"""From sampled parameters to a complete configuration: conditions, fixed values, defaults, alpha from its ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from decimal import Decimal

from automl.lora import Hyperparameters
from automl.space.spec import CategoricalParameter, IntParameter, Parameter, SearchSpace
from automl.trial import Scalar

_FIELDS = {field.name: field.default for field in fields(Hyperparameters)}


def assemble(space: SearchSpace, params: Mapping[str, Scalar]) -> Hyperparameters:
    """Sampled values over fixed ones over the defaults; alpha = alpha_ratio * rank where the ratio is given.

    Names with a condition that does not hold are simply absent from `params` and take their default.
    Raises ValueError if `params` holds a name that the space does not search.
    """
    searched = {*(parameter.name for parameter in space.parameters), *space.columns}
    strange = [name for name in params if name not in searched]
    if strange:
        raise ValueError(f"{strange[0]!r} is not a parameter of this space; it has {', '.join(sorted(searched))}")
    values = {**space.fixed, **{name: value for name, value in params.items() if name not in space.columns}}
    ratio = values.pop("alpha_ratio", None)
    if ratio is not None:
        values["alpha"] = float(ratio) * int(values.get("rank", Hyperparameters().rank))
    return Hyperparameters(**{name: _as_declared(name, value) for name, value in values.items()})  # type: ignore[arg-type]


def active_parameters(space: SearchSpace, params: Mapping[str, Scalar]) -> Iterator[Parameter]:
    """Yield the parameters whose condition holds, in order.

    Lazy: the caller may sample each one and put it into `params` before asking for the next.
    """
    for parameter in space.parameters:
        if is_active(parameter, params):
            yield parameter


def is_active(parameter: Parameter, params: Mapping[str, Scalar]) -> bool:
    """Whether the condition of a parameter holds; a condition on an inactive parameter does not."""
    when = parameter.when
    return when is None or (when.parameter in params and params[when.parameter] in when.values)


def contains(parameter: Parameter, value: Scalar) -> bool:
    """Whether a value is one that the parameter can take."""
    if isinstance(parameter, CategoricalParameter):
        return any(
            value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in parameter.choices
        )
    if isinstance(value, (bool, str)) or not _lies_between(value, parameter.low, parameter.high):
        return False
    if isinstance(parameter, IntParameter) and value != int(value):
        return False
    return parameter.step is None or is_multiple(value - parameter.low, parameter.step)


def _lies_between(value: float, low: float, high: float) -> bool:
    """Ends included, up to the rounding of sums such as 0.1 + 0.2."""
    return low <= value <= high or math.isclose(value, low) or math.isclose(value, high)


def is_multiple(distance: float, step: float) -> bool:
    """Whether a distance is a whole number of steps, up to the rounding of decimals such as 0.1."""
    steps = Decimal(str(distance)) / Decimal(str(step))
    return abs(steps - steps.to_integral_value()) < Decimal("1e-9")


def constraint_values(hyper: Hyperparameters, derived: Mapping[str, float]) -> dict[str, Scalar]:
    """All names that a constraint may read, with their values; `derived` holds trainable_params."""
    plain = {name: value for name, value in asdict(hyper).items() if name != "rank_pattern"}
    return {**plain, "alpha_ratio": hyper.alpha / hyper.rank, **derived}


def _as_declared(name: str, value: Scalar) -> Scalar:
    """A whole number given for a float field, as a float."""
    return float(value) if isinstance(_FIELDS[name], float) else value
