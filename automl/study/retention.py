"""Which adapters stay on disk: those of the best COMPLETE trials of the whole study, and of its Pareto front."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from automl.ranking import Point, pareto_front
from automl.storage.base import Artifact, ResultStore

ADAPTER = "adapter"


class Retention:
    """Ranks COMPLETE trials and gives up the adapters of those that are neither among the best `keep` (at least one
    stays) nor on the Pareto front. With one objective the front is the best trial.

    A row is marked deleted before its files go, so a crash in between leaves files without a row, never the reverse;
    `tidy` asks for their deletion again.
    """

    def __init__(
        self, store: ResultStore, *, keep: int, retire: Callable[[int], None], digest: Callable[[str], tuple[str, int]]
    ) -> None:
        self._store = store
        self._keep = max(1, keep)
        self._retire = retire
        self._digest = digest
        self._ranking: list[Point] = []

    @property
    def best(self) -> int | None:
        """Number of the best trial by the metric; of equals the smallest one, then the lower number."""
        return self._ranking[0].trial if self._ranking else None

    def rank(self, point: Point) -> list[int]:
        """Take a COMPLETE trial into the ranking; returns the trials that fall out of it, for good."""
        insort(self._ranking, point)
        kept = {*self._ranking[: self._keep], *pareto_front(self._ranking)}
        dropped = [placed.trial for placed in self._ranking if placed not in kept]
        self._ranking = [placed for placed in self._ranking if placed in kept]
        return dropped

    def record(self, trial: int, folder: str, metric: float) -> None:
        """Write the row of an adapter; the same again after a crash."""
        sha256, size = self._digest(folder)
        self._store.add_artifact(
            Artifact(trial=trial, kind=ADAPTER, path=folder, sha256=sha256, bytes=size, metric=metric)
        )

    def give_up(self, trial: int) -> None:
        """Mark the trial's adapter deleted, then have its files deleted."""
        self._store.delete_artifact(trial, ADAPTER)
        self._retire(trial)

    def tidy(self) -> None:
        """Finish what a driver that died in between had begun."""
        kept = {placed.trial for placed in self._ranking}
        for artifact in self._store.artifacts(include_deleted=True):
            if artifact.kind != ADAPTER or artifact.trial in kept:
                continue
            if artifact.deleted_at is None:
                self._store.delete_artifact(artifact.trial, ADAPTER)
            self._retire(artifact.trial)
