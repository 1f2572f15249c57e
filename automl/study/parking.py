"""Policies that pause and resume trials: the seam for them, and how samplers see a paused trial."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Container, Sequence, Set
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.trial import Action, Decision


class ParkingPruner(BasePruner):
    """A pruner that may also park a trial, and later promote it.

    A parked trial keeps its slot file and stays RUNNING in Optuna, which knows no pause; it becomes PRUNED when it can
    no longer be promoted, at the latest when the sweep ends. Implementations keep no state that a new driver could not
    read from the study.
    """

    @abstractmethod
    def horizon(self, step: int) -> int:
        """The step up to which a trial that stands at `step` is going to train, at most, before it may be parked."""

    @abstractmethod
    def decide(self, trial: FrozenTrial) -> Decision:
        """CONTINUE, PARK or PRUNE for a trial that has reported and is not at its last step."""

    @abstractmethod
    def promote(
        self, trials: Sequence[FrozenTrial], parked: Set[int], *, direction: StudyDirection, may_start: bool
    ) -> int | None:
        """The parked trial that a free place should get, None if none should now.

        trials: all of the study; those RUNNING and not in `parked` are with a worker, or wait for one. may_start:
        whether None makes a new trial start.
        """

    def hopeless(
        self,
        trials: Sequence[FrozenTrial],
        parked: Set[int],
        *,
        direction: StudyDirection,
        to_come: int,
        steps_left: int | None,
    ) -> list[int]:
        """Parked trials that will not be promoted, whatever comes; none, unless a policy can tell.

        to_come: trials that may be started beside those in `trials`. steps_left: of the budget, None = without end.
        """
        return []

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Optuna's question, for use outside our study: only PRUNE stops a trial."""
        return self.decide(trial).action is Action.PRUNE


class ParkedAsPruned(BaseSampler):
    """A sampler that is shown parked trials as PRUNED with their last value.

    To Optuna they are RUNNING, and TPE (constant liar) takes a running trial for a bad one. parked: their numbers, as
    they are when it is called.
    """

    def __init__(self, base: BaseSampler, parked: Callable[[], Set[int]]) -> None:
        self._base = base
        self._parked = parked

    def __str__(self) -> str:
        return str(self._base)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Of the base, for the changed view."""
        return self._base.infer_relative_search_space(self._view(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Of the base, for the changed view."""
        return self._base.sample_relative(self._view(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of the base, for the changed view."""
        return self._base.sample_independent(self._view(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._base.before_trial(self._view(study), trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passed on."""
        self._base.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Passed on."""
        self._base.reseed_rng()

    def _view(self, study: Study) -> Study:
        return cast(Study, _View(study, self._parked()))


class _View:
    """An Optuna study whose parked trials are PRUNED; everything else is the study's own."""

    def __init__(self, study: Study, parked: Set[int]) -> None:
        self._study = study
        self._parked = parked

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
        seen = (self._seen(trial) for trial in self._study._get_trials(deepcopy=False, use_cache=use_cache))
        trials = [trial for trial in seen if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _seen(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.number not in self._parked:
            return trial
        shown = copy.copy(trial)
        shown.state = TrialState.PRUNED
        return shown
