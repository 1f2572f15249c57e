"""Constraints that can be decided before training: which one a configuration violates, if any."""

from __future__ import annotations

from collections.abc import Mapping

from automl.space.assemble import assemble, constraint_values
from automl.space.constraints import Constraint
from automl.space.satisfiable import Derive
from automl.space.spec import SearchSpace
from automl.trial import Scalar


class Feasibility:
    """The constraints of one space, with what they need to know about the model."""

    def __init__(self, space: SearchSpace, derive: Derive) -> None:
        self._space = space
        self._derive = derive

    def violated(self, params: Mapping[str, Scalar]) -> Constraint | None:
        """The first constraint these active parameters violate, None if they satisfy all.

        A constraint sees the whole configuration (fixed values and defaults too) and derived quantities.
        """
        if not self._space.constraints:
            return None
        hyper = assemble(self._space, params)
        values = constraint_values(self._space, params, hyper, self._derive(hyper))
        return next((constraint for constraint in self._space.constraints if constraint.violation(values) > 0), None)
