"""The ends of a space that matter for time and memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from automl.lora import Hyperparameters
from automl.methods.lora import EVA, INIT
from automl.methods.registry import METHODS
from automl.methods.settings import Setting, chosen
from automl.space.limits import Names
from automl.space.spec import CategoricalParameter, SearchSpace

_DEFAULTS = Hyperparameters()


def choices(space: SearchSpace, name: str) -> list[Any]:
    """Values to consider for a hyperparameter: its choices, the ends of its range, its fixed value, or the default."""
    for parameter in space.parameters:
        if parameter.name == name:
            if isinstance(parameter, CategoricalParameter):
                return list(parameter.choices)
            return [parameter.low, parameter.high]
    return [space.fixed.get(name, getattr(_DEFAULTS, name, None))]


def methods_of(space: SearchSpace) -> list[str]:
    """Methods the space can choose."""
    return [str(name) for name in choices(space, "method")]


def names_of(space: SearchSpace) -> Names:
    """What a file with this space may name."""
    return Names(methods_of(space), space.task, lambda setting: setting_values(space, setting))


def setting_values(space: SearchSpace, setting: Setting) -> list[Any]:
    """Values to consider for a setting of a method or of the task, as `choices` has them."""
    return [setting.default if value is None else value for value in choices(space, setting.name)]


def own_values(space: SearchSpace) -> dict[str, list[Any]]:
    """Values to consider for every setting of the methods that the space can choose, and of the task."""
    return {name: setting_values(space, setting) for name, setting in names_of(space).own.items()}


def starts_from_inputs(space: SearchSpace) -> bool:
    """Whether trials may need to know the inputs of the model's layers before they begin."""
    return EVA in own_values(space).get(INIT.name, ())


def not_quantizable(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """The keys that ask for what cannot be on a quantised model, and why, on one line each."""
    for name in methods_of(space):
        if not METHODS[name].quantizable:
            yield "method", f"{name!r} needs whole weights of the model, which quantization leaves in few bits"
    for name, setting in names_of(space).own.items():
        if refused := setting.on_whole_weights(setting_values(space, setting)):
            known = ", ".join(map(str, setting.quantizable or ()))
            yield name, f"{refused[0]!r} needs the whole weights, which quantization leaves in few bits; use {known}"


def corners(space: SearchSpace) -> Iterator[Hyperparameters]:
    """The extremes of what parameters and memory follow from: method, target set, rank, settings that are `sized`.

    Of what a method does not use there is the default alone. Each has the largest dropout.
    """
    for name in methods_of(space):
        method = METHODS[name]
        targets = target_names(space) if "target" in method.takes else [_DEFAULTS.target]
        ranks = extremes(space, "rank") if "rank" in method.takes else [_DEFAULTS.rank]
        sized = [setting for setting in method.settings if setting.sized]
        own = list(itertools.product(*(setting_values(space, setting) for setting in sized)))
        for target, rank, values in itertools.product(targets, ranks, own):
            given = {setting.name: value for setting, value in zip(sized, values, strict=True)}
            yield Hyperparameters(
                method=name, target=target, rank=rank, dropout=highest(space, "dropout"), own=chosen(sized, given)
            )


def variants(space: SearchSpace) -> Iterator[Hyperparameters]:
    """Every method as it is by default, and with each value to consider of one of its settings."""
    for name in methods_of(space):
        target = target_names(space)[0] if "target" in METHODS[name].takes else _DEFAULTS.target
        yield Hyperparameters(method=name, target=target)
        for setting in METHODS[name].settings:
            for value in setting_values(space, setting):
                yield Hyperparameters(method=name, target=target, own=chosen([setting], {setting.name: value}))


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
