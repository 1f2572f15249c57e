"""Which finished trials are worth a look at held-out data: a host's best so far."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

from automl.metric import METRICS

FINALISTS = 5
"""Best finished trials of a host that are looked at."""


class Finalists:
    """Remembers the best values of the trials that have finished on one host."""

    def __init__(self, metric: str, *, most: int = FINALISTS) -> None:
        self._metric = metric
        self._most = most
        self._best: list[float] = []  # losses, smallest first

    def admit(self, metrics: Mapping[str, float]) -> bool:
        """Whether a trial that finishes with these metrics is among the best so far. Ask once for each trial."""
        loss = METRICS[self._metric].loss(metrics[self._metric])
        place = bisect.bisect_left(self._best, loss)
        self._best.insert(place, loss)
        del self._best[self._most :]
        return place < self._most
