"""The ends of a space that matter for time and memory."""

from __future__ import annotations

from typing import Any

from automl.lora import Hyperparameters
from automl.space.spec import CategoricalParameter, SearchSpace

_DEFAULTS = Hyperparameters()


def choices(space: SearchSpace, name: str) -> list[Any]:
    """Values to consider for a hyperparameter: its choices, the ends of its range, its fixed value, or the default."""
    for parameter in space.parameters:
        if parameter.name == name:
            if isinstance(parameter, CategoricalParameter):
                return list(parameter.choices)
            return [parameter.low, parameter.high]
    return [space.fixed.get(name, getattr(_DEFAULTS, name))]


def extremes(space: SearchSpace, name: str) -> list[int]:
    """Smallest and largest value of a whole-numbered hyperparameter, once if they are equal."""
    values = [int(value) for value in choices(space, name)]
    return sorted({min(values), max(values)})


def highest(space: SearchSpace, name: str) -> float:
    """Largest value of a numeric hyperparameter."""
    return max(float(value) for value in choices(space, name))


def target_names(space: SearchSpace) -> list[str]:
    """Target sets the space can choose, in the order in which they are written."""
    return [str(name) for name in choices(space, "target")]
