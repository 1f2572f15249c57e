"""Sampling of whole configurations, feasible ones and in a finite space new ones, around any of Optuna's samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from automl.space.assemble import active_parameters
from automl.space.spec import SearchSpace
from automl.study.distributions import distributions, known_values
from automl.study.feasibility import Feasibility
from automl.study.grid import Configurations
from automl.trial import Scalar

ATTEMPTS = 200
"""Configurations in all before the last one is handed on, infeasible as it is."""


class ConstrainedSampler(BaseSampler):
    """Asks the base sampler for whole configurations until one satisfies every constraint, then draws at random.

    That there is memory for a trial is a constraint, too.

    In a finite space it must also be new to the study: trained again, it would differ by its random start only. There
    the first untried configuration in a random order takes the place of random draws.

    Optuna samples parameters one after another, so a condition over several of them can only be checked when all are
    known. Hence the whole active configuration is drawn inside `sample_relative`, from what the base proposes jointly
    and, for the rest, independently; conditions (`when`) are walked in declared order. A model that is sure of its
    optimum proposes much the same each time, so after `proposals` tries the rest of the ATTEMPTS is drawn at random.
    Why not Optuna's constraints: they are learnt from finished trials, and a trial over the parameter limit should not
    start at all (docs/adr/0005-constrained-sampling.md).
    """

    def __init__(
        self,
        base: BaseSampler,
        space: SearchSpace,
        feasibility: Feasibility,
        *,
        proposals: int,
        seed: int,
        configurations: Configurations | None = None,
    ) -> None:
        """configurations: those of the space, if it is finite."""
        self._base = base
        self.configurations = configurations
        self._proposals = proposals
        self._random = RandomSampler(seed=seed)
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
        """A complete active configuration that is wanted; if none is found, the last one drawn."""
        inferred = self._base.infer_relative_search_space(study, trial)
        params: dict[str, Scalar] = {}
        for attempt in range(ATTEMPTS if self.configurations is None else self._proposals):
            if attempt < self._proposals:
                relative = self._base.sample_relative(study, trial, inferred)
                params = self._complete(study, trial, relative, self._base)
            else:
                params = self._complete(study, trial, {}, self._random)
            if self._is_wanted(study, trial, params):
                return params
        return dict((self.configurations and self.configurations.fresh(study, trial)) or params)

    def _is_wanted(self, study: Study, trial: FrozenTrial, params: Mapping[str, Scalar]) -> bool:
        is_fresh = self.configurations is None or self.configurations.is_fresh(study, trial, params)
        return is_fresh and not self._feasibility.refusal(params)

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
        self._random.reseed_rng()

    def _complete(
        self, study: Study, trial: FrozenTrial, relative: Mapping[str, Any], independent: BaseSampler
    ) -> dict[str, Scalar]:
        """All active parameters: known ones, else those drawn jointly, else one by one."""
        given = known_values(trial)
        params: dict[str, Scalar] = {}
        for parameter in active_parameters(self._space, params):
            name, dist = parameter.name, self._distributions[parameter.name]
            if name in given:
                params[name] = given[name]
            elif name in relative and dist._contains(dist.to_internal_repr(relative[name])):
                params[name] = relative[name]
            else:
                params[name] = independent.sample_independent(study, trial, name, dist)
        return params
