"""Settings of a method that do not go together, by what the method says of itself.

What no trial could avoid is a problem of the file. Of what is searched, combinations that exclude each other are simply
not chosen, as if the file had a constraint against them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from automl.methods.registry import METHODS
from automl.methods.settings import Exclusion
from automl.space.constraints import Constraint, parse_constraint
from automl.space.extremes import methods_of, names_of, setting_values
from automl.space.satisfiable import is_hopeless
from automl.space.spec import SearchSpace
from automl.trial import Scalar


class Objection(NamedTuple):
    """What is wrong with a value that the space gives to a name."""

    name: str
    message: str


def objections(space: SearchSpace) -> Iterator[Objection]:
    """Values of settings that exclude each other in every trial that has one of them. Its ranges are all known."""
    for exclusion, _ in _reachable(space):
        searched = [name for name in exclusion.values if _is_searched(space, name)]
        if len(searched) < 2:
            name = (searched or list(exclusion.values))[-1]
            others = [f"{other} {_words(exclusion.values[other])}" for other in exclusion.values if other != name]
            what = f"{_words(exclusion.values[name])} and {' and '.join(others)} exclude each other"
            yield Objection(name, f"{what}, {exclusion.reason}; remove one of them")


def implied_constraints(space: SearchSpace) -> tuple[Constraint, ...]:
    """Constraints that keep combinations from being chosen which exclude each other. Its ranges are all known."""
    return tuple(parse_constraint(f"not ({combined.expression})") for _, combined in _reachable(space))


def _reachable(space: SearchSpace) -> Iterator[tuple[Exclusion, Constraint]]:
    """The exclusions that the space would run into, each with the condition that a configuration is one of them."""
    plain = replace(space, constraints=())
    for method in methods_of(space):
        own = {setting.name for setting in METHODS[method].settings}
        for exclusion in (each for each in METHODS[method].exclusions if each.values.keys() <= own):
            several = [f"method == {json.dumps(method)}"] if len(methods_of(space)) > 1 else []
            parts = [f"{name} in {_list(values)}" for name, values in exclusion.values.items()]
            combined = parse_constraint(" and ".join([*several, *parts]))
            if not is_hopeless([combined], plain):
                yield exclusion, combined


def _is_searched(space: SearchSpace, name: str) -> bool:
    known = names_of(space).own[name]
    return len(set(setting_values(space, known))) > 1


def _words(values: Iterable[Scalar]) -> str:
    return " or ".join("true" if value is True else "false" if value is False else str(value) for value in values)


def _list(values: Iterable[Scalar]) -> str:
    return f"[{', '.join(repr(value) for value in values)}]"
