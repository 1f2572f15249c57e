"""What the pruner is asked: what becomes of trials that have reported, and which parked ones go on or are given up."""

from __future__ import annotations

from collections.abc import Sequence, Set

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial

from automl.space.spec import SearchSettings
from automl.study.open_trials import OpenTrial
from automl.study.parking import ParkingPruner
from automl.study.peer import PeerPruner, Verdict
from automl.trial import Action, Decision


class Judge:
    """The pruner of a study, asked about trials on one state of the study; it changes nothing."""

    def __init__(self, settings: SearchSettings, study: optuna.Study, pruner: BasePruner) -> None:
        self._settings = settings
        self._study = study
        self._pruner = pruner
        self._parking = pruner if isinstance(pruner, ParkingPruner) else None

    @property
    def can_park(self) -> bool:
        """Whether trials may be paused."""
        return self._parking is not None

    def horizon(self, reached: int) -> int:
        """The step up to which a trial that stands at `reached` is going to train, before it ends or may be parked."""
        return self._settings.steps if self._parking is None else self._parking.horizon(reached)

    def decisions(self, reported: Sequence[OpenTrial]) -> list[tuple[OpenTrial, Decision]]:
        """Decisions on trials that have reported: all of the study are read once, and only if peers are compared."""
        peers: Sequence[FrozenTrial] = ()
        if isinstance(self._pruner, PeerPruner) and any(self._pruner.is_rung(opened.reached) for opened in reported):
            peers = self._trials()
        return [(opened, self._decision(opened, peers)) for opened in reported]

    def promotable(self, parked: Set[int], *, may_start: bool) -> int | None:
        """The parked trial that a free place should get, None if none should now."""
        if not parked or self._parking is None:
            return None
        return self._parking.promote(self._trials(), parked, direction=self._study.direction, may_start=may_start)

    def hopeless(self, parked: Set[int], *, to_come: int, steps_left: int | None) -> list[int]:
        """Parked trials that will not be promoted, whatever comes."""
        if not parked or self._parking is None:
            return []
        return self._parking.hopeless(
            self._trials(), parked, direction=self._study.direction, to_come=to_come, steps_left=steps_left
        )

    def _decision(self, opened: OpenTrial, peers: Sequence[FrozenTrial]) -> Decision:
        number, step = opened.number, opened.reached
        if opened.is_over(self._settings.steps):
            ended = opened.best.reason if opened.best is not None else ""
            return Decision(trial=number, action=Action.FINISH, reason=ended or f"reached step {step}")
        if step == opened.judged:  # a worker that reopens a trial sends what was decided on long ago
            return Decision(trial=number, action=Action.CONTINUE, reason=f"nothing new since step {step}")
        if self._parking is not None:
            return self._parking.decide(self._study._storage.get_trial(opened.trial._trial_id))
        verdict = self._verdict(opened, peers)
        action = Action.PRUNE if verdict.prune else Action.CONTINUE
        return Decision(trial=number, action=action, reason=verdict.reason)

    def _verdict(self, opened: OpenTrial, peers: Sequence[FrozenTrial]) -> Verdict:
        if isinstance(self._pruner, PeerPruner) and self._pruner.is_rung(opened.reached):
            return self._pruner.judge(peers[opened.number], peers, self._study.direction)
        if isinstance(self._pruner, NopPruner):  # not asked: should_prune refuses studies of two objectives
            return Verdict(False, "none pruner")
        return Verdict(opened.trial.should_prune(), f"{self._settings.pruner} pruner")

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)
