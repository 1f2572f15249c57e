"""Grid search over the active configurations of a space, each visited once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from automl.space.assemble import is_active
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchSpace
from automl.study.distributions import distributions
from automl.study.feasibility import Feasibility
from automl.study.registry import refuse
from automl.trial import Scalar

LARGEST = 100_000
"""Configurations a grid may have."""


class GridSampler(BaseSampler):
    """All configurations that satisfy the constraints, shuffled by the seed, skipping those the study has.

    Optuna's own GridSampler is not used: it multiplies parameters out although some are inactive (the same
    configuration several times), knows no constraints, and calls `study.stop()`, which is refused outside
    `study.optimize`. An int with `log` contributes low, 2 * low, 4 * low ... Raises ConfigError if a float has no step,
    if there are more than LARGEST configurations, or none.
    """

    def __init__(self, space: SearchSpace, feasibility: Feasibility, *, seed: int) -> None:
        self._distributions = distributions(space)
        points = islice(_configurations(space), LARGEST + 1)
        self._points = [point for point in points if feasibility.violated(point) is None]
        if not self._points:
            raise refuse("sampler", "grid: no configuration satisfies the constraints")
        if len(self._points) > LARGEST:
            raise refuse("sampler", f"grid: more than {LARGEST:,} configurations; use fewer values, or another sampler")
        random.Random(seed).shuffle(self._points)  # noqa: S311

    def is_exhausted(self, study: Study) -> bool:
        """Whether the study has a trial for every configuration."""
        return self._next(study) is None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every declared parameter."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next configuration; the first one again if all have been visited."""
        return dict(self._next(study) or self._points[0])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Value of a parameter that an enqueued configuration activates but does not give: its first one."""
        return next(point[param_name] for point in self._points if param_name in point)

    def _next(self, study: Study) -> Mapping[str, Scalar] | None:
        visited = {frozenset(trial.params.items()) for trial in study.get_trials(deepcopy=False)}
        return next((point for point in self._points if frozenset(point.items()) not in visited), None)


def _configurations(space: SearchSpace) -> Iterator[dict[str, Scalar]]:
    """Every active configuration, in declared order, the last parameter varying fastest."""

    def extend(point: dict[str, Scalar], rest: tuple[Parameter, ...]) -> Iterator[dict[str, Scalar]]:
        if not rest:
            yield point
            return
        first, *others = rest
        if not is_active(first, point):
            yield from extend(point, tuple(others))
            return
        for value in _values(first):
            yield from extend({**point, first.name: value}, tuple(others))

    return extend({}, space.parameters)


def _values(parameter: Parameter) -> tuple[Scalar, ...]:
    match parameter:
        case CategoricalParameter(choices=choices):
            return choices
        case IntParameter(low=low, high=high, log=True):
            return tuple(low << power for power in range((high // low).bit_length()))
        case IntParameter(low=low, high=high, step=step):
            return tuple(range(low, high + 1, step))
        case FloatParameter(low=low, high=high, step=step) if step is not None:
            return tuple(low + number * step for number in range(int((high - low) / step + 1e-9) + 1))
        case _:
            raise refuse("sampler", f"grid: {parameter.name} is continuous; give it a step, or choices")
