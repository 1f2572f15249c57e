"""The values a parameter can take, computed exactly: the one definition that grids, distributions and checks share.

A range with a step holds low, low + step, low + 2 * step ... up to high, as the decimals that the file writes: 0, 0.1,
0.2, 0.3 and not 0.30000000000000004, which binary arithmetic makes of 3 * 0.1 and which lies above a high of 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

from automl.space.assemble import is_active
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchSpace
from automl.trial import Scalar

MOST_CONFIGURATIONS = 100_000
"""Configurations that are listed one by one, constraints aside."""
MOST_STEPS = 10**12
"""Steps of a range: far more, and neighbours could not be told apart."""

_SLACK = Fraction(1, 10**9)
"""Part of a step by which a value may miss a point, since it may come from binary arithmetic."""

Values = Callable[[Parameter], Sequence[Scalar]]


def contains(parameter: Parameter, value: Scalar) -> bool:
    """Whether a value is one that the parameter can take, up to the rounding of sums such as 0.1 + 0.2."""
    if isinstance(parameter, CategoricalParameter):
        return any(
            value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in parameter.choices
        )
    if isinstance(value, (bool, str)) or not _lies_between(value, parameter.low, parameter.high):
        return False
    if isinstance(parameter, IntParameter) and value != int(value):
        return False
    if parameter.step is None:
        return True
    steps = _steps(parameter.low, value, parameter.step)
    return abs(steps - round(steps)) < _SLACK and round(steps) <= _last(parameter, parameter.step)


def snapped(parameter: Parameter, value: Scalar) -> Scalar:
    """The value itself as the parameter spells it: 0.3 for 0.1 + 0.2. `value` is one that the parameter contains."""
    if not isinstance(parameter, FloatParameter) or isinstance(value, str):
        return value
    if parameter.step is None:
        return min(max(value, parameter.low), parameter.high)
    return _point(parameter.low, parameter.step, round(_steps(parameter.low, value, parameter.step)))


def last_point(parameter: FloatParameter | IntParameter) -> float:
    """The largest value of a range: its high, or where the last whole step before it ends."""
    if parameter.step is None:
        return parameter.high
    if isinstance(parameter, IntParameter):
        return parameter.low + _last(parameter, parameter.step) * parameter.step
    return _point(parameter.low, parameter.step, _last(parameter, parameter.step))


def is_divided(low: float, high: float, step: float) -> bool:
    """Whether whole steps lead from low to high."""
    steps = _steps(low, high, step)
    return abs(steps - round(steps)) < _SLACK


def is_too_fine(low: float, high: float, step: float) -> bool:
    """Whether there are so many steps that neighbouring values could not be told apart."""
    return _steps(low, high, step) > MOST_STEPS or step < 4 * math.ulp(max(abs(low), abs(high)))


def values(parameter: Parameter) -> Sequence[Scalar]:
    """All values in order. Raises ValueError if the parameter is continuous."""
    match parameter:
        case CategoricalParameter(choices=choices):
            return choices
        case IntParameter(low=low, high=high, step=step):
            return range(low, high + 1, step)
        case FloatParameter(low=low, step=step) if step is not None:
            return _FloatRange(low, step, _last(parameter, step) + 1)
    raise ValueError(f"{parameter.name} is continuous")


def grid_values(parameter: Parameter) -> Sequence[Scalar]:
    """The values that a grid visits: all, but of whole numbers on a log scale low, 2 * low, 4 * low ... up to high."""
    if isinstance(parameter, IntParameter) and parameter.log:
        return [parameter.low << power for power in range((parameter.high // parameter.low).bit_length())]
    return values(parameter)


def count_configurations(space: SearchSpace, values: Values = values) -> int | None:
    """Number of active configurations, constraints aside; None if a parameter is continuous."""
    if any(isinstance(parameter, FloatParameter) and parameter.step is None for parameter in space.parameters):
        return None
    return math.prod(_count(parameter, space, values) for parameter in space.parameters if parameter.when is None)


def configurations(space: SearchSpace, values: Values = values) -> Iterator[dict[str, Scalar]]:
    """Every active configuration, constraints aside, in declared order, the last parameter varying fastest.

    Raises ValueError if a parameter is continuous.
    """

    def extend(point: dict[str, Scalar], rest: tuple[Parameter, ...]) -> Iterator[dict[str, Scalar]]:
        if not rest:
            yield point
            return
        first, *others = rest
        if not is_active(first, point):
            yield from extend(point, tuple(others))
            return
        for value in values(first):
            yield from extend({**point, first.name: value}, tuple(others))

    return extend({}, space.parameters)


def configuration_key(space: SearchSpace, params: Mapping[str, Scalar]) -> frozenset[tuple[str, Scalar]]:
    """What two spellings of one configuration have in common; names that the space does not search are left out."""
    searched = (parameter for parameter in space.parameters if parameter.name in params)
    return frozenset((parameter.name, snapped(parameter, params[parameter.name])) for parameter in searched)


class _FloatRange(Sequence[float]):
    """The points of a range of real numbers, each computed when it is asked for."""

    def __init__(self, low: float, step: float, length: int) -> None:
        self._low, self._step, self._length = low, step, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number):  # type: ignore[no-untyped-def]  # an index or a slice
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(self._length))]
        return _point(self._low, self._step, range(self._length)[number])


def _count(parameter: Parameter, space: SearchSpace, values: Values) -> int:
    """Configurations of a parameter and of all that depends on it."""
    own = values(parameter)
    children = [child for child in space.parameters if child.when and child.when.parameter == parameter.name]
    if not children:
        return len(own)
    below = [(child.when, _count(child, space, values)) for child in children]
    return sum(math.prod(count for when, count in below if when and value in when.values) for value in own)


def _lies_between(value: float, low: float, high: float) -> bool:
    """Ends included, up to the rounding of sums such as 0.1 + 0.2."""
    return low <= value <= high or math.isclose(value, low) or math.isclose(value, high)


def _exact(number: float) -> Fraction:
    """The decimal that is written for a number."""
    return Fraction(str(number))


def _steps(low: float, value: float, step: float) -> Fraction:
    return (_exact(value) - _exact(low)) / _exact(step)


def _last(parameter: FloatParameter | IntParameter, step: float) -> int:
    return math.floor(_steps(parameter.low, parameter.high, step))


def _point(low: float, step: float, number: int) -> float:
    return float(_exact(low) + number * _exact(step))
