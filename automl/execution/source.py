"""The seam between the dispatcher and whoever decides about trials: a search's study, a verification's trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from automl.trial import Decision, Measurement, TrialFailure, TrialSpec


class TrialSource(Protocol):
    """Hands out trials, takes their values, and decides what becomes of them.

    One thread calls it. What it writes down is durable when a method returns, since a worker may forget what it has
    said then. An exception ends the run: every worker is sent home, and the executor raises it.
    """

    @property
    def live(self) -> Mapping[int, TrialSpec]:
        """Trials that are with a worker, by number."""

    @property
    def finished(self) -> bool:
        """Whether nothing is with a worker and nothing will be handed out any more."""

    def next(self, worker: int) -> TrialSpec | None:
        """Hand a trial to a worker, which is live then; None if there is none now. It is asked again later."""

    def restart(self, trial: int, worker: int) -> TrialSpec:
        """Hand a live trial out again, as its next attempt, since its worker was lost."""

    def report(self, measurements: Sequence[Measurement]) -> None:
        """Take what has arrived together. A trial that ends by it is live no more; others are decided about."""

    def fail(self, failure: TrialFailure) -> None:
        """End a live trial that cannot go on."""

    def decide(self, trials: Sequence[int]) -> Sequence[Decision]:
        """Say what becomes of live trials that have reported; those it says nothing of go on."""

    def interrupt(self, reason: str) -> None:
        """Leave all live trials so that the next run can go on with them: every worker has gone."""
