"""Spaces of finitely many configurations: which of them a study has not tried yet, and grid search over them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from automl.space.points import (
    MOST_CONFIGURATIONS,
    Values,
    configuration_key,
    configurations,
    count_configurations,
    grid_values,
    values,
)
from automl.space.spec import FloatParameter, SearchSpace
from automl.study.distributions import distributions, known_values
from automl.study.feasibility import Feasibility
from automl.study.outcome import STOP_REASON
from automl.study.registry import refuse
from automl.trial import Scalar, StopReason

Configuration = Mapping[str, Scalar]
Key = frozenset[tuple[str, Scalar]]

_UNTRIED = (StopReason.BUDGET, StopReason.LOST)
"""Reasons of a FAIL trial whose configuration was not trained."""


class Configurations:
    """The configurations of a finite space that satisfy its constraints, in an order that the seed decides."""

    def __init__(self, space: SearchSpace, feasibility: Feasibility, *, seed: int, values: Values = values) -> None:
        self._space = space
        self._feasibility = feasibility
        self._seed = seed
        self._values = values
        self._keys: dict[int, Key] = {}
        self._fitting: tuple[float, list[Configuration]] | None = None

    @cached_property
    def allowed(self) -> list[Configuration]:
        """All of them, made when they are first asked for."""
        every = configurations(self._space, self._values)
        allowed: list[Configuration] = [point for point in every if self._feasibility.violated(point) is None]
        random.Random(self._seed).shuffle(allowed)  # noqa: S311
        return allowed

    @property
    def feasible(self) -> list[Configuration]:
        """Those of them for which there is memory, as far as the study knows by now."""
        room = self._feasibility.room
        if room is None:
            return self.allowed
        if self._fitting is None or self._fitting[0] != room.factor:
            fitting = [point for point in self.allowed if not self._feasibility.refusal(point)]
            self._fitting = room.factor, fitting
        return self._fitting[1]

    def is_fresh(self, study: Study, trial: FrozenTrial, point: Configuration) -> bool:
        """Whether no trial of the study has had this configuration, the one that is being sampled aside."""
        return configuration_key(self._space, point) not in self._tried(study, trial.number)

    def fresh(self, study: Study, trial: FrozenTrial) -> Configuration | None:
        """The first configuration that no other trial has had, with the values this trial has already if there is one.

        None if all have been tried.
        """
        tried = self._tried(study, trial.number)
        untried = [point for point in self.feasible if frozenset(point.items()) not in tried]
        given = known_values(trial)
        return next((point for point in untried if given.items() <= point.items()), next(iter(untried), None))

    def are_exhausted(self, study: Study) -> bool:
        """Whether the study has a trial of every one."""
        if len(study.get_trials(deepcopy=False)) < len(self.feasible):
            return False
        tried = self._tried(study)
        return all(frozenset(point.items()) in tried for point in self.feasible)

    def _tried(self, study: Study, sampled: int | None = None) -> set[Key]:
        trials = study.get_trials(deepcopy=False)
        return {self._key(trial) for trial in trials if trial.number != sampled and _is_tried(trial)}

    def _key(self, trial: FrozenTrial) -> Key:
        if trial.number not in self._keys:
            self._keys[trial.number] = configuration_key(self._space, trial.params)
        return self._keys[trial.number]


class GridSampler(BaseSampler):
    """All configurations that satisfy the constraints, shuffled by the seed, skipping those the study has.

    Optuna's own GridSampler is not used: it multiplies parameters out although some are inactive (the same
    configuration several times), knows no constraints, and calls `study.stop()`, which is refused outside
    `study.optimize`. An int with `log` contributes low, 2 * low, 4 * low ... Raises ConfigError if a float has no step,
    if there are more than MOST_CONFIGURATIONS, constraints aside, or none that satisfies the constraints.
    """

    def __init__(self, space: SearchSpace, feasibility: Feasibility, *, seed: int) -> None:
        if problem := grid_problem(space):
            raise refuse("sampler", f"grid: {problem}")
        self._distributions = distributions(space)
        self.configurations = Configurations(space, feasibility, seed=seed, values=grid_values)
        if not self.configurations.allowed:
            raise refuse("sampler", "grid: no configuration satisfies the constraints")

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every declared parameter."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next configuration that has the trial's enqueued values; once all have been tried, the first one."""
        return dict(self.configurations.fresh(study, trial) or self.configurations.allowed[0])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Value of a parameter that an enqueued configuration activates but does not give: its first one.

        Never of one that `sample_relative` gave: its values are all those of the distributions.
        """
        return next(point[param_name] for point in self.configurations.allowed if param_name in point)


def grid_problem(space: SearchSpace) -> str:
    """Why a grid over the space cannot be searched, whatever its constraints; empty if it can."""
    for parameter in space.parameters:
        if isinstance(parameter, FloatParameter) and parameter.step is None:
            return f"{parameter.name} is continuous; give it a step, or choices"
    count = count_configurations(space, grid_values) or 0
    if count > MOST_CONFIGURATIONS:
        return f"{count:,} configurations, more than {MOST_CONFIGURATIONS:,}; use fewer values, or another sampler"
    return ""


def _is_tried(trial: FrozenTrial) -> bool:
    is_cut_off = trial.state is TrialState.FAIL and trial.user_attrs.get(STOP_REASON) in _UNTRIED
    return trial.state is not TrialState.WAITING and not is_cut_off
