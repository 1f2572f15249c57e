"""What a search spends while it runs: read from the clock and the studies, written down, held against its budget.

Time of a device is what is paid for: the clock runs for every device of the run from when workers are asked for to when
the last has gone home, whatever they do meanwhile. So it counts once however many trials share a device, and it counts
evaluations, waiting, and trials that fail or are thrown away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from automl.errors import AutomlError, BudgetSpent
from automl.results.spending import overspent, price_of
from automl.setup.affordable import needs, needs_together
from automl.setup.setup import Setup
from automl.space.spec import BudgetSettings, SweepSpec
from automl.storage.base import RunEnd
from automl.storage.overview import StudyTotals, study_totals
from automl.storage.runs import RunLog
from automl.storage.spending import Spent, spent_by, together
from automl.storage.sql import Database
from automl.study.study import Study

logger = logging.getLogger(__name__)

_WRITE_SECONDS = 1.0


def check_budget(database: Database, specs: Sequence[SweepSpec]) -> None:
    """Raise BudgetSpent if a budget ended the last run of a study that wants more trials, and all may spend no more.

    Before anything is prepared for them. A study that wants no more trials is brought to its end.
    """
    totals = {each.study: each for each in study_totals(database, [spec.study for spec in specs])}
    if any(spec.study in totals and _is_cut_off(totals[spec.study], spec) for spec in specs):
        budget = specs[0].search.budget
        _refuse(overspent(budget, together((each.spent for each in totals.values()), price_of(budget))))


def _is_cut_off(totals: StudyTotals, spec: SweepSpec) -> bool:
    run = totals.last_run
    return run is not None and run.ended is RunEnd.BUDGET and totals.ended < spec.search.trials


def tell_needs(setups: Iterable[Setup]) -> None:
    """Log which budgets are too small for what is asked for; without a probe nothing is known of hours and money."""
    for need in needs_together(needs(each.spec, each.inputs) for each in setups):
        if need.is_too_much:
            logger.warning("%s", need.advice)


def open_meter(
    database: Database,
    driven: Iterable[tuple[Study, RunLog]],
    budget: BudgetSettings,
    *,
    devices: int,
    clock: Callable[[], float] = time.monotonic,
) -> Meter:
    """The meter of studies whose run has been recorded, on so many devices."""
    listed = list(driven)
    earlier = spent_by(database, [study.name for study, _ in listed])
    return Meter([Lane(study, log, earlier[study.name]) for study, log in listed], budget, devices=devices, clock=clock)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise BudgetSpent(f"nothing was trained ({reason}); nothing is lost, with more, the same command continues")


class Lane(NamedTuple):
    """A study that is driven, the row of its run, and what earlier runs of it have spent."""

    study: Study
    log: RunLog
    earlier: Spent


class Meter:
    """What one or several studies of a file spend in this run and have spent before it. They share budget and devices.

    Where there are several, time of devices is theirs in equal parts who have trials under way.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        budget: BudgetSettings,
        *,
        devices: int,
        clock: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._budget = budget
        self._devices = devices
        self._clock = clock
        self._since = self._written = clock()
        self._seconds = [0.0] * len(lanes)
        self._busy: Sequence[int] = range(len(lanes))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block, and write down what it came to, however it ends."""
        self._since = self._written = self._clock()
        try:
            yield
        except BaseException:
            try:
                self._write()
            except AutomlError as second:  # the database is away, or the lease is lost: the first error is to be told
                logger.debug("the time of devices was not recorded: %s", second)
            raise
        self._write()

    def tick(self) -> None:
        """Count the time since it was counted last; it is written down once a second."""
        now = self._clock()
        passed = (now - self._since) * self._devices
        self._since = now
        for lane in self._busy:
            self._seconds[lane] += passed / len(self._busy)
        self._busy = self._at_work()
        if now - self._written >= _WRITE_SECONDS:
            self._put_down(now)

    def check(self) -> None:
        """Raise BudgetSpent if nothing is left to begin with."""
        _refuse(overspent(self._budget, self.spent))

    def overspent(self) -> str | None:
        """Which budget is spent, in words; None while all last."""
        self.tick()
        return overspent(self._budget, self.spent)

    @property
    def spent(self) -> Spent:
        """By all studies, in all runs."""
        before = (replace(lane.earlier, tokens=0, examples=0) for lane in self._lanes)  # studies know of all runs
        work = (Spent(tokens=lane.study.work.tokens, examples=lane.study.work.examples) for lane in self._lanes)
        return together([*before, *work, Spent(device_seconds=sum(self._seconds))], price_of(self._budget))

    def _at_work(self) -> Sequence[int]:
        """Studies with trials under way; all while none has any."""
        return [number for number, lane in enumerate(self._lanes) if lane.study.live] or range(len(self._lanes))

    def _write(self) -> None:
        self.tick()
        self._put_down(self._clock())

    def _put_down(self, now: float) -> None:
        self._written = now
        for lane, seconds in zip(self._lanes, self._seconds, strict=True):
            lane.log.spend(seconds)
