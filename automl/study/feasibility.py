"""Which constraints a configuration violates: those decided before training, and those on its last measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from automl.lora import Hyperparameters
from automl.space.assemble import assemble, constraint_values
from automl.space.constraints import Constraint
from automl.space.satisfiable import Derive
from automl.space.spec import SearchSpace
from automl.study.room import Room
from automl.trial import FORGETTING, Scalar, StopReason

NOT_MEASURED = 1.0
"""Violation of a constraint on something that could not be measured."""


class Feasibility:
    """The constraints of one space, with what they need to know about the model, and the memory there is.

    room: None if memory is in nobody's way.
    """

    def __init__(self, space: SearchSpace, derive: Derive, room: Room | None = None) -> None:
        self._space = space
        self._derive = derive
        self.room = room

    def refusal(self, params: Mapping[str, Scalar], *, has_trained: bool = False) -> str:
        """Why no trial with these active parameters is started; empty if one may be.

        has_trained: the trial has made steps, and so has shown that it fits, whatever the plan is.
        """
        violated = self.violated(params)
        if violated is not None:
            return f"violates {violated.expression!r}"
        return "" if self.room is None or has_trained else self.room.shortage(assemble(self._space, params))

    def may_start(self, params: Mapping[str, Scalar]) -> bool:
        """Whether a trial that was refused once, perhaps for want of memory, would be started now."""
        known = {parameter.name for parameter in self._space.parameters}
        return params.keys() <= known and not self.refusal(params)

    def learn(self, hyper: Hyperparameters, reason: StopReason) -> None:
        """Note why a trial of this configuration could not go on."""
        if self.room is not None and reason is StopReason.OOM:
            self.room.learn(hyper)

    def violated(self, params: Mapping[str, Scalar]) -> Constraint | None:
        """The first constraint these active parameters violate, None if they satisfy all.

        A constraint sees the whole configuration (fixed values and defaults too) and derived quantities.
        """
        return next((each for each, by in self._violations(self._space.constraints, params, {}) if by > 0), None)

    def missed(self, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> tuple[Constraint, float] | None:
        """The constraint that a trial with these last metrics misses most, and by how much; None if it satisfies all.

        What could not be measured satisfies nothing.
        """
        measured = self._space.measured
        if measured and FORGETTING not in metrics:
            return measured[0], NOT_MEASURED
        found = self._violations(measured, params, {FORGETTING: metrics.get(FORGETTING, 0.0)})
        return max((each for each in found if each[1] > 0), key=lambda each: each[1], default=None)

    def _violations(
        self, constraints: Sequence[Constraint], params: Mapping[str, Scalar], measured: Mapping[str, float]
    ) -> list[tuple[Constraint, float]]:
        if not constraints:
            return []
        hyper = assemble(self._space, params)
        values = {**constraint_values(self._space, params, hyper, self._derive(hyper)), **measured}
        return [(constraint, constraint.violation(values)) for constraint in constraints]
