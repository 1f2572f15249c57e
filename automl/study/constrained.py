"""Sampling under constraints over the whole configuration, around any of Optuna's samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from automl.space.assemble import active_parameters
from automl.space.spec import SearchSpace
from automl.study.distributions import distributions
from automl.study.feasibility import Feasibility
from automl.trial import Scalar

ATTEMPTS = 200
"""Proposals per trial before the last one is handed on, violated constraint and all."""


class ConstrainedSampler(BaseSampler):
    """Asks the base sampler for whole configurations until one satisfies every constraint.

    Optuna samples parameters one after another, so a condition over several of them can only be checked when all are
    known. Hence the whole active configuration is drawn inside `sample_relative`, from what the base proposes jointly
    and, for the rest, independently; conditions (`when`) are walked in declared order. Why not Optuna's constraints:
    they are learnt from finished trials, and a trial over the parameter limit should not start at all
    (docs/adr/0005-constrained-sampling.md).
    """

    def __init__(self, base: BaseSampler, space: SearchSpace, feasibility: Feasibility) -> None:
        self._base = base
        self._space = space
        self._feasibility = feasibility
        self._distributions = distributions(space)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._base})"

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every declared parameter, so that Optuna takes all values from `sample_relative`."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A complete active configuration that satisfies all constraints; after ATTEMPTS tries the last one drawn."""
        inferred = self._base.infer_relative_search_space(study, trial)
        params: dict[str, Scalar] = {}
        for _ in range(ATTEMPTS):
            params = self._propose(study, trial, inferred)
            if self._feasibility.violated(params) is None:
                break
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The base's value for a parameter outside the declared space."""
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._base.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passed on."""
        self._base.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Passed on."""
        self._base.reseed_rng()

    def _propose(self, study: Study, trial: FrozenTrial, inferred: dict[str, BaseDistribution]) -> dict[str, Scalar]:
        given = known_values(trial)
        relative = self._base.sample_relative(study, trial, inferred)
        params: dict[str, Scalar] = {}
        for parameter in active_parameters(self._space, params):
            name, dist = parameter.name, self._distributions[parameter.name]
            if name in given:
                params[name] = given[name]
            elif name in relative and dist._contains(dist.to_internal_repr(relative[name])):
                params[name] = relative[name]
            else:
                params[name] = self._base.sample_independent(study, trial, name, dist)
        return params


def known_values(trial: FrozenTrial) -> Mapping[str, Scalar]:
    """Values the trial has before it is sampled: those enqueued with it, and those stored already."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
