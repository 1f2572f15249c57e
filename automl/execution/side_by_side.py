"""Several sources as one, so that trials of several studies are with the same workers at the same time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from automl.errors import SearchError
from automl.execution.source import TrialSource
from automl.lanes import lane_of, number_in, own_number
from automl.trial import Decision, Measurement, TrialFailure, TrialSpec

logger = logging.getLogger(__name__)


class SideBySide:
    """Every source is a lane (`automl.lanes`); who has the fewest trials with workers is asked for the next one.

    A source that gives up, by a SearchError, hands out nothing more; its trials under way go on to their end, and so do
    the other sources. errors: what they gave up with, by lane.
    """

    def __init__(self, sources: Sequence[TrialSource]) -> None:
        self.errors: dict[int, SearchError] = {}
        self._sources = sources

    @property
    def live(self) -> Mapping[int, TrialSpec]:
        """Trials of all sources that are with a worker."""
        return {
            number_in(lane, number): _with_number(spec, lane)
            for lane, source in enumerate(self._sources)
            for number, spec in source.live.items()
        }

    @property
    def finished(self) -> bool:
        """Whether every source has finished or given up."""
        return all(self._is_finished(lane) for lane in range(len(self._sources)))

    def has_finished(self, lane: int) -> bool:
        """Whether a source has come to its end without giving up."""
        return self._is_finished(lane) and lane not in self.errors

    def next(self, worker: int) -> TrialSpec | None:
        """The next trial of the source with the fewest at work, or of the first other one that has any."""
        for lane in sorted(self._going(), key=lambda lane: len(self._sources[lane].live)):
            try:
                spec = self._sources[lane].next(worker)
            except SearchError as error:
                self._give_up(lane, error)
                continue
            if spec is not None:
                return _with_number(spec, lane)
        return None

    def restart(self, trial: int, worker: int) -> TrialSpec:
        """See `TrialSource.restart`."""
        lane = lane_of(trial)
        return _with_number(self._sources[lane].restart(own_number(trial), worker), lane)

    def report(self, measurements: Sequence[Measurement]) -> None:
        """Hand every source what is its own."""
        own: dict[int, list[Measurement]] = {}
        for item in measurements:
            own.setdefault(lane_of(item.trial), []).append(replace(item, trial=own_number(item.trial)))
        for lane, items in own.items():
            self._sources[lane].report(items)

    def fail(self, failure: TrialFailure) -> None:
        """See `TrialSource.fail`."""
        self._sources[lane_of(failure.trial)].fail(replace(failure, trial=own_number(failure.trial)))

    def decide(self, trials: Sequence[int]) -> Sequence[Decision]:
        """The decisions of every source about its own trials."""
        own: dict[int, list[int]] = {}
        for trial in trials:
            own.setdefault(lane_of(trial), []).append(own_number(trial))
        return [
            replace(decision, trial=number_in(lane, decision.trial))
            for lane, numbers in own.items()
            for decision in self._sources[lane].decide(numbers)
        ]

    def interrupt(self, reason: str) -> None:
        """Leave the live trials of all sources; the first error is raised when all have been told."""
        problems = list(self._interrupted(reason))
        if problems:
            raise problems[0]

    def _interrupted(self, reason: str) -> Iterator[Exception]:
        for source in self._sources:
            try:
                source.interrupt(reason)
            except Exception as error:  # noqa: BLE001 - the others are to be told as well; the caller raises it
                yield error

    def _going(self) -> list[int]:
        return [lane for lane in range(len(self._sources)) if lane not in self.errors]

    def _is_finished(self, lane: int) -> bool:
        source = self._sources[lane]
        if lane not in self.errors:
            try:
                return source.finished
            except SearchError as error:
                self._give_up(lane, error)
        return not source.live

    def _give_up(self, lane: int, error: SearchError) -> None:
        logger.error("task %d goes no further: %s", lane + 1, error)
        self.errors[lane] = error


def _with_number(spec: TrialSpec, lane: int) -> TrialSpec:
    return replace(spec, number=number_in(lane, spec.number))
