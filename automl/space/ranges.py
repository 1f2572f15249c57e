"""From the `space:` section to parameters in sampling order: bounds, steps, choices and conditions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from pydantic import ValidationError

from automl.space.limits import RATE, Names, has, own_rate, plain
from automl.space.messages import Problems, shown, unknown
from automl.space.points import contains, is_divided, is_too_fine
from automl.space.schema_space import ChoiceSection, FloatSection, IntSection
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, When
from automl.space.yaml_nodes import KeyPath
from automl.trial import Scalar

RangeSection = FloatSection | IntSection | ChoiceSection


def build_parameters(
    sections: Mapping[str, RangeSection], absent: Mapping[str, str], names: Names, problems: Problems
) -> list[Parameter]:
    """The parameters, ordered so that every condition refers to an earlier one.

    A name that some of the methods do not have is active with the others only. `absent`: names a condition cannot refer
    to although they exist, with the reason (fixed, auto). Parameters with a problem are left out.
    """
    free: dict[str, Parameter] = {}
    for name, section in sections.items():
        parameter = _unconditional(name, section, names, {*sections, *absent}, problems)
        if parameter is not None:
            free[name] = parameter
    ranged: dict[str, Parameter] = {}
    for name, parameter in free.items():
        condition = sections[name].when
        if condition is None:
            ranged[name] = replace(parameter, when=names.condition(name, {*sections, *absent}))
        elif (methods := _methods_of_rates(name, {*sections, *absent}, names)) is not None:
            problems.at_key(("space", name, "when"), f"is said already: these are rates of {methods}; leave it out")
        else:
            ranged[name] = _conditional(parameter, condition, free, absent, names, problems)
    return _ordered(ranged, names, problems)


def _methods_of_rates(name: str, given: Collection[str], names: Names) -> str | None:
    """Whose learning rates these are, where methods have their own; None if that is not so, or is another name."""
    if plain(name) != RATE or names.without_own_rates(given) == names.methods:
        return None
    return names.owner(name) or " and ".join(names.without_own_rates(given))


def _check_coordinate(parameter: FloatParameter, names: Names, given: Collection[str], problems: Problems) -> None:
    """Report `at_alpha` where there is no learning rate, or no alpha, that it could be about."""
    if parameter.at_alpha is None:
        return
    path: KeyPath = ("space", parameter.name, "at_alpha")
    if plain(parameter.name) != RATE:
        problems.at_key(path, f"is known of learning rates alone, not of {parameter.name}; remove it")
        return
    owner = names.owner(parameter.name)
    methods = (owner,) if owner else names.without_own_rates(given)
    without = [method for method in methods if not has(method, "alpha")]
    if without and len(without) == len(methods):
        problems.at_key(path, f"method {' and '.join(without)} has no alpha; remove it")
    elif without:
        own = ", ".join(own_rate(method) for method in without)
        problems.at_key(path, f"method {' and '.join(without)} has no alpha; give it rates of its own: {own}")


def _unconditional(
    name: str, section: RangeSection, names: Names, given: Collection[str], problems: Problems
) -> Parameter | None:
    path: KeyPath = ("space", name)
    before = len(problems.found)
    if isinstance(section, ChoiceSection):
        parameter: Parameter = CategoricalParameter(name=name, choices=_choices(name, section, names, problems))
    elif names.is_chosen(name):
        problems.at_value(
            (*path, "type"), f"{section.type!r} does not suit {name}; write {{type: categorical, choices: [...]}}"
        )
        return None
    elif isinstance(section, FloatSection):
        if names.is_whole(name):
            problems.at_value((*path, "type"), f"'float' does not suit {name}, a whole number; write type: int")
            return None
        parameter = FloatParameter(
            name=name,
            low=section.low,
            high=section.high,
            log=section.log,
            step=section.step,
            at_alpha=section.at_alpha,
        )
        _check_coordinate(parameter, names, given, problems)
    else:
        parameter = IntParameter(name=name, low=section.low, high=section.high, log=section.log, step=section.step)
    if not isinstance(parameter, CategoricalParameter):
        is_step_given = section.model_dump().get("step") not in (None, 1)
        _check_range(parameter, names, problems, path, is_step_given=is_step_given)
    return parameter if len(problems.found) == before else None


def _choices(name: str, section: ChoiceSection, names: Names, problems: Problems) -> tuple[Scalar, ...]:
    choices: list[Scalar] = []
    for index, value in enumerate(section.choices):
        path = ("space", name, "choices", index)
        choice = checked_value(name, value, path, names, problems)
        if choice is None:
            continue
        if choice in choices:
            problems.at_value(path, f"{shown(value)} is listed twice")
        choices.append(choice)
    return tuple(choices)


def checked_value(name: str, value: object, path: KeyPath, names: Names, problems: Problems) -> Scalar | None:
    """The value in its own type, or None with the problem reported at `path`."""
    try:
        return names.checked(name, value)
    except ValidationError as error:
        problems.from_pydantic(error, path)
        return None


def _check_range(
    parameter: FloatParameter | IntParameter, names: Names, problems: Problems, path: KeyPath, *, is_step_given: bool
) -> None:
    low, high, step = parameter.low, parameter.high, parameter.step
    if low > high:
        problems.at_value((*path, "low"), f"{shown(low)} is above high {shown(high)}")
        return
    if low == high:
        problems.at_value(
            (*path, "low"), f"{shown(low)} equals high; write {parameter.name}: {shown(low)} under fixed:"
        )
        return
    if parameter.log and low <= 0:
        problems.at_value((*path, "low"), f"{shown(low)} is not above 0, as log: true needs")
        return
    for end, value in (("low", low), ("high", high)):
        checked_value(parameter.name, value, (*path, end), names, problems)
    if parameter.log and is_step_given:
        problems.at_value((*path, "step"), "step and log: true exclude each other; remove one")
    elif step and is_too_fine(low, high, step):
        problems.at_value((*path, "step"), f"{shown(step)} is too small to tell values up to {shown(high)} apart")
    elif step and not is_divided(low, high, step):
        problems.at_value((*path, "step"), f"{shown(step)} does not lead from low {shown(low)} to high {shown(high)}")


def _conditional(
    parameter: Parameter,
    condition: Mapping[str, object],
    free: Mapping[str, Parameter],
    absent: Mapping[str, str],
    names: Names,
    problems: Problems,
) -> Parameter:
    path: KeyPath = ("space", parameter.name, "when")
    if len(condition) != 1:
        problems.at_value(path, f"names {len(condition)} parameters; write one, such as {{target: all-linear}}")
        return parameter
    ((other, wanted),) = condition.items()
    path = (*path, other)
    if other in absent:
        problems.at_key(path, f"{other} {absent[other]}, so nothing can depend on it")
    elif other not in names:
        problems.at_key(path, unknown("parameter", other, free))
    elif other in free:
        values = _wanted(free[other], wanted, path, names, problems)
        if other == "method":
            _check_brought(parameter.name, values, path, names, problems)
        return _with_condition(parameter, When(parameter=other, values=values))
    elif problems.is_given(("space", other)):
        pass  # it has a problem of its own
    else:
        problems.at_key(path, f"{other} is not in space:, so nothing can depend on it")
    return parameter


def _check_brought(name: str, methods: tuple[Scalar, ...], path: KeyPath, names: Names, problems: Problems) -> None:
    for method in methods:
        if method not in names.methods_with(name):
            problems.at_value(path, f"method {method} does not use {name}")


def _wanted(other: Parameter, wanted: object, path: KeyPath, names: Names, problems: Problems) -> tuple[Scalar, ...]:
    if isinstance(other, FloatParameter):
        problems.at_key(path, f"{other.name} is a range of real numbers; a condition needs whole numbers or choices")
        return ()
    values: list[Scalar] = []
    for index, value in enumerate(wanted if isinstance(wanted, list) else [wanted]):
        place = (*path, index) if isinstance(wanted, list) else path
        choice = checked_value(other.name, value, place, names, problems)
        if choice is not None and not contains(other, choice):
            problems.at_value(place, f"{shown(value)} is no value of {other.name}, which {described(other)}")
        elif choice is not None:
            values.append(choice)
    if wanted == []:
        problems.at_value(path, "is empty; list the values under which the parameter is active")
    return tuple(values)


def described(parameter: Parameter) -> str:
    """What values a parameter takes, to follow 'which': 'is one of qv, mlp', 'lies between 2 and 32'."""
    if isinstance(parameter, CategoricalParameter):
        return "is one of " + ", ".join(shown(choice) for choice in parameter.choices)
    grid = f" in steps of {shown(parameter.step)}" if parameter.step not in (None, 1) else ""
    coordinate = getattr(parameter, "at_alpha", None)
    at = "" if coordinate is None else f" at alpha {coordinate:g}"
    return f"lies between {shown(parameter.low)} and {shown(parameter.high)}{grid}{at}"


def _with_condition(parameter: Parameter, when: When) -> Parameter:
    return replace(parameter, when=when)


def _ordered(parameters: Mapping[str, Parameter], names: Names, problems: Problems) -> list[Parameter]:
    """In the order of the names, but every parameter after the one it depends on.

    One that depends on what is left out, for a problem of its own, waits for nothing.
    """
    waiting = [parameters[name] for name in names.ordered(parameters)]
    ordered: list[Parameter] = []
    while waiting:
        later = {parameter.name for parameter in waiting}
        ready = [item for item in waiting if item.when is None or item.when.parameter not in later]
        if not ready:
            _report_cycle(waiting, problems)
            return ordered
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered


def _report_cycle(waiting: list[Parameter], problems: Problems) -> None:
    parents = {item.name: item.when.parameter for item in waiting if item.when}
    reported: set[str] = set()
    for name in parents:
        chain = [name]
        while parents[chain[-1]] not in chain:
            chain.append(parents[chain[-1]])
        if parents[chain[-1]] == name and not reported & set(chain):
            reported.update(chain)
            problems.at_value(("space", name, "when"), f"depends on itself: {' -> '.join([*chain, name])}")
