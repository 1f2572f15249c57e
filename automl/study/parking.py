"""The seam for policies that pause trials and resume them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence, Set

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

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

        to_come: trials that may be started beside those in `trials`. steps_left: what the budget leaves, None = without
        end.
        """
        return []

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Optuna's question, for use outside our study: only PRUNE stops a trial."""
        return self.decide(trial).action is Action.PRUNE
