"""Whether constraints leave a space anything, as far as it can be told without sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

from automl.lora import Hyperparameters
from automl.space import limits as hyper
from automl.space.assemble import assemble, constraint_values
from automl.space.constraints import Constraint
from automl.space.extremes import names_of
from automl.space.points import MOST_CONFIGURATIONS, Values, configurations, count_configurations, values
from automl.space.spec import SearchSpace

_SCALE = frozenset({"alpha", "alpha_ratio", "rank"})
"""Names that follow from each other."""
_SIZE = {"method", "rank", "target"}
"""What the number of trainable parameters follows from, beside settings of methods that say so."""

Derive = Callable[[Hyperparameters], Mapping[str, float]]
"""Quantities that follow from a configuration and the model, such as trainable_params."""


def is_hopeless(
    constraints: Sequence[Constraint], space: SearchSpace, values: Values = values, derive: Derive | None = None
) -> bool:
    """Whether every configuration violates one of the constraints; False if that cannot be told here.

    Left aside are those that depend on the model, on an automatic or a continuous range, or on too many combinations.
    values: those of each parameter that the sampler chooses from. derive: what follows from a configuration on the
    model, once that is known.
    """
    known = hyper.DERIVED if derive else frozenset[str]()
    told = [constraint for constraint in constraints if _can_be_told(space, constraint, values, known)]
    part = _part(space, told)
    if not told or (count_configurations(part, values) or 0) > MOST_CONFIGURATIONS:
        return False
    for params in configurations(part, values):
        whole = assemble(part, params)
        read = constraint_values(part, params, whole, derive(whole) if derive else {})
        if all(constraint.violation(read) <= 0 for constraint in told):
            return False
    return True


def _can_be_told(space: SearchSpace, constraint: Constraint, values: Values, known: Set[str]) -> bool:
    part = _part(space, [constraint])
    if _names(space, [constraint]) & ((hyper.DERIVED - known) | set(map(hyper.plain, part.auto))):
        return False
    count = count_configurations(part, values)
    return count is not None and count <= MOST_CONFIGURATIONS


def _names(space: SearchSpace, constraints: Sequence[Constraint]) -> set[str]:
    """What the constraints read, and what that follows from."""
    named = {name for constraint in constraints for name in constraint.names}
    own = names_of(space).own
    if named & hyper.DERIVED:
        named |= _SIZE | {name for name, setting in own.items() if setting.sized}
    if named & own.keys():
        named |= {"method"}
    return named | _SCALE if named & {"alpha", "alpha_ratio"} else named


def _part(space: SearchSpace, constraints: Sequence[Constraint]) -> SearchSpace:
    """The space of the parameters that constraints read, and of those that their conditions need."""
    kept = _names(space, constraints)
    for parameter in reversed(space.parameters):  # a condition refers to an earlier one
        if hyper.plain(parameter.name) in kept and parameter.when is not None:
            kept.add(parameter.when.parameter)
    return replace(space, parameters=tuple(each for each in space.parameters if hyper.plain(each.name) in kept))
