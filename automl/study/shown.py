"""How samplers see the trials that were not trained to the last step, since a pruner leaves most of them there.

To Optuna a parked trial is RUNNING, and TPE (constant liar) takes a running trial for a bad one; a Gaussian process,
CMA-ES and NSGA-II learn from COMPLETE trials only. Without a view of their own the first would be misled, and the
others would draw at random nearly to the end (docs/adr/0015-samplers-and-pruners.md).
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

View = Callable[[Sequence[FrozenTrial]], list[FrozenTrial]]
"""All trials of a study, in order, as a sampler is to see them; trials that look different are copies."""


class ShownTrials(BaseSampler):
    """A sampler that sees the trials of the study through a view."""

    def __init__(self, base: BaseSampler, view: View) -> None:
        self._base = base
        self._view = view

    def __str__(self) -> str:
        return str(self._base)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Passed on with the changed view."""
        return self._base.infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Passed on with the changed view."""
        return self._base.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Passed on with the changed view."""
        return self._base.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._base.before_trial(self._seen(study), trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passed on."""
        self._base.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Passed on."""
        self._base.reseed_rng()

    def _seen(self, study: Study) -> Study:
        return cast(Study, _SeenStudy(study, self._view))


def parked_as_pruned(parked: Callable[[], Set[int]]) -> View:
    """Parked trials are PRUNED with their last value. parked: their numbers, as they are when it is called."""

    def view(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        numbers = parked()
        return [_shown(trial, TrialState.PRUNED) if trial.number in numbers else trial for trial in trials]

    return view


def unfinished_as_complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Every feasible trial with a value is COMPLETE, with the value it may be expected to reach at the last step.

    That is its last value plus, for each step from there to the deepest that was measured, the median change of the
    trials that went that way: values of different steps are brought to one step, and trials that stopped together keep
    their order. A trial that has failed or is infeasible keeps its state and is given such a value too, since NSGA-II
    may have chosen it as a parent before.
    """
    gains = _gains([trial.intermediate_values for trial in trials])
    return [_expected(trial, gains) for trial in trials]


def _expected(trial: FrozenTrial, gains: Mapping[int, float]) -> FrozenTrial:
    if trial.state is TrialState.COMPLETE or not trial.intermediate_values:
        return trial
    last = max(trial.intermediate_values)
    is_out = trial.state is TrialState.FAIL or any(violation > 0 for violation in trial.constraints.values())
    shown = _shown(trial, trial.state if is_out else TrialState.COMPLETE)
    shown.values = [trial.intermediate_values[last] + sum(gain for step, gain in gains.items() if step >= last)]
    return shown


def _gains(curves: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """Step -> median change of a trial's value from there to the next step at which any was measured."""
    measured = [curve for curve in curves if curve]
    steps = sorted({step for curve in measured for step in curve})
    changes = {
        step: [curve[after] - curve[step] for curve in measured if step in curve and after in curve]
        for step, after in pairwise(steps)
    }
    return {step: statistics.median(change) for step, change in changes.items() if change}


def _shown(trial: FrozenTrial, state: TrialState) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = state
    return shown


class _SeenStudy:
    """An Optuna study whose trials are seen through a view; everything else is the study's own."""

    def __init__(self, study: Study, view: View) -> None:
        self._study = study
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """The name that Optuna's samplers call (5.0)."""
        seen = self._view(self._study._get_trials(deepcopy=False, use_cache=use_cache))
        trials = [trial for trial in seen if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials
