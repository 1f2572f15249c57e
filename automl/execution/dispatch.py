"""The driver's half of the conversation: turns a worker's cohort into decisions of a source of trials, and those into
orders.

All policy about trials is the source's: a search's study, or the trainings of a verification. What lives here is about
workers: who holds which trial, what happens to the trials of a worker that died, and how everything is brought to a
halt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from automl.errors import BudgetSpent, ClusterLost, InterruptedSearch, ResourceError, TimeIsUp
from automl.execution.source import TrialSource
from automl.execution.stop import Halt
from automl.lanes import trial_name
from automl.trial import Action, Cohort, Metrics, Order, OrderKind, StopReason, TrialFailure, TrialSpec

logger = logging.getLogger(__name__)

_DEATHS_IN_COMPANY = 2
"""Deaths of its worker without progress of its own after which a trial is suspected and trained alone."""
_DEATHS_ALONE = 3
"""Deaths of its worker while it trained alone after which a trial has failed."""
_DEATHS_UNHEARD = 3
"""Deaths of a worker that never got as far as its first cohort after which the sweep gives up."""

TIME_IS_UP = "time"
CLUSTER_LOST = "Ray ended unexpectedly"
_NO_WORKER_LEFT = "all workers have gone"

_STOP = Order(kind=OrderKind.STOP)


class Occupation(NamedTuple):
    """One start of a worker: seconds of training and evaluating, and of anything else while there were trials."""

    worker: int
    epoch: int
    busy_seconds: float
    idle_seconds: float


class Dispatcher:
    """Answers cohorts with orders until the source is finished, or `stop` was called.

    Not thread-safe but for `stop`, which may also be called from a signal handler. An error of the source or of a
    worker stops every worker and is raised by `finish`. max_seconds is counted from construction by `clock`.
    halted is asked, once what a worker has brought is decided on, why nothing should be trained any more; on_exchange
    is called after every exchange.
    """

    def __init__(
        self,
        source: TrialSource,
        *,
        max_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        halted: Callable[[], Halt | None] = lambda: None,
        on_exchange: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._max_seconds = max_seconds
        self._clock = clock
        self._began = clock()
        self._halted = halted
        self._on_exchange = on_exchange
        self._workers: dict[int, _Worker] = {}
        self._records: dict[int, _Record] = {}
        self._unheard: dict[int, int] = {}
        self._present: set[int] = set()
        self._sending_home = False
        self._occupation: dict[tuple[int, int], Occupation] = {}
        self._error: Exception | None = None
        self._stopped: str | None = None
        self._ending: type[InterruptedSearch] = InterruptedSearch
        self.baseline: Metrics | None = None

    @property
    def stopped(self) -> str | None:
        """Why everything was told to stop before the source was finished; None if nothing was."""
        return self._stopped

    @property
    def over(self) -> bool:
        """Workers are being sent home and every worker that was heard of has been told, or has died."""
        return (self._sending_home or self._stopped is not None) and not self._present

    @property
    def occupation(self) -> list[Occupation]:
        """How the workers' time was spent, one entry for each start of each worker."""
        return [self._occupation[start] for start in sorted(self._occupation)]

    def stop(self, reason: str, ending: type[InterruptedSearch] = InterruptedSearch) -> None:
        """Send every worker home at its next exchange; the first reason stays, with what the run ends with."""
        if self._stopped is None:
            self._ending, self._stopped = ending, reason

    def exchange(self, cohort: Cohort) -> list[Order]:
        """Report all of the cohort's values, then decide on its trials, then fill what is free.

        A cohort of an earlier start of its worker changes nothing, and its sender is sent home. Never raises.
        """
        if self._is_late(cohort):
            logger.warning("a late cohort of start %d of worker %d was ignored", cohort.epoch, cohort.worker)
            return [_STOP]
        self._occupation[cohort.worker, cohort.epoch] = Occupation(
            cohort.worker, cohort.epoch, cohort.busy_seconds, cohort.idle_seconds
        )
        if self._max_seconds is not None and self._clock() - self._began >= self._max_seconds:
            self.stop(TIME_IS_UP, TimeIsUp)
        try:
            orders = self._register(cohort) if cohort.hello else self._judge(cohort)
            self._on_exchange()
        except Exception as error:  # noqa: BLE001 - the executor's edge: every worker is sent home, `finish` raises it
            self._give_up(error)
            orders = [_STOP]
        if _STOP in orders:
            self._sending_home = True
            self._present.discard(cohort.worker)
        return orders

    def lost(self, worker: int, why: str) -> None:
        """Note that a worker's process died; it is started again as soon as there is a place for it.

        After 3 starts without a word the sweep gives up. Until it is back, idle workers may go on with its trials.
        """
        known = self._workers.get(worker)
        if known is not None:
            self._mark_lost(known)
        trials = ", ".join(map(str, known.waiting)) if known else ""
        then = f"is started again; trials {trials} go on" if trials else "is started again"
        logger.warning("worker %d died and %s: %s", worker, then, why)
        self._present.discard(worker)
        self._unheard[worker] = self._unheard.get(worker, 0) + 1
        if self._unheard[worker] >= _DEATHS_UNHEARD:
            died = f"worker {worker} died {self._unheard[worker]} times before it was ready, last: {why}"
            self._give_up(ResourceError(died))

    def failed(self, worker: int, error: Exception) -> None:
        """End the sweep with an error of a worker outside of any trial: it cannot build its host, its disk is full."""
        logger.error("worker %d failed: %s: %s", worker, type(error).__name__, error)
        self._present.discard(worker)
        self._give_up(error)

    def finish(self) -> None:
        """Leave live trials resumable once no worker is left, and raise the error that stopped the sweep, if any."""
        if self._error is not None:
            self._interrupt_after(self._error)
            raise self._error
        if self._source.finished:
            self._stopped = None
        else:
            self.stop(_NO_WORKER_LEFT, ClusterLost)
            self._source.interrupt(self._stopped or "")

    def interruption(self, so_far: str) -> InterruptedSearch | None:
        """What the run ends with if everything was told to stop before the source was finished, else None.

        so_far: what has been done by then, in words.
        """
        if self._stopped is None:
            return None
        goes_on = (
            "with more, the same command continues" if self._ending is BudgetSpent else "the same command continues"
        )
        return self._ending(f"stopped ({self._stopped}) after {so_far}; nothing is lost, {goes_on}")

    def _interrupt_after(self, error: Exception) -> None:
        try:
            self._source.interrupt(f"{type(error).__name__}: {error}")
        except Exception as second:  # noqa: BLE001 - the first error is the one to report; the next run adopts the trials
            logger.warning("trials in progress could not be marked interrupted: %s", second)

    def _give_up(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.stop("error")

    def _is_late(self, cohort: Cohort) -> bool:
        worker = self._workers.get(cohort.worker)
        if worker is None:
            return not cohort.hello
        return cohort.epoch <= worker.epoch if cohort.hello else cohort.epoch != worker.epoch

    def _ask_to_halt(self) -> None:
        if self._stopped is None and (halt := self._halted()) is not None:
            self.stop(*halt)

    def _register(self, cohort: Cohort) -> list[Order]:
        self._ask_to_halt()
        index = cohort.worker
        worker = self._workers.get(index)
        self._present.add(index)
        self._unheard[index] = -1  # the next death ends a start that was heard of
        if cohort.baseline is not None:
            self.baseline = cohort.baseline
        if worker is None:
            waited = self._clock() - self._began
            logger.info("worker %d is ready after %.0f s, with room for %d trials", index, waited, cohort.capacity)
            worker = self._workers[index] = _Worker(index=index, epoch=cohort.epoch, capacity=cohort.capacity)
            return list(self._occupy(worker))
        self._mark_lost(worker)
        worker.epoch = cohort.epoch
        worker.capacity = cohort.capacity
        if self._stopped is None:
            return [*self._resume(worker, worker, worker.lost), *self._release(worker), *self._occupy(worker)]
        return [_STOP]

    def _judge(self, cohort: Cohort) -> list[Order]:
        worker = self._workers[cohort.worker]
        worker.capacity = cohort.capacity
        reported = self._report(worker, cohort)
        over = [trial for trial in reported if trial not in self._source.live]
        orders = [worker.let_go(trial, OrderKind.CLOSE) for trial in over]
        for decision in self._source.decide([trial for trial in reported if trial not in over]):
            if decision.action is Action.PARK:
                orders.append(worker.let_go(decision.trial, OrderKind.PARK))
            elif decision.action is not Action.CONTINUE and decision.trial in worker.open:
                orders.append(worker.let_go(decision.trial, OrderKind.CLOSE))
        self._ask_to_halt()
        return [*orders, *self._occupy(worker)]

    def _report(self, worker: _Worker, cohort: Cohort) -> list[int]:
        """Hand values, then failures, to the source. Returns the worker's trials that brought news.

        A step that was judged before is no news: it comes from the slot file of a restarted worker.
        """
        fresh = [
            item
            for item in cohort.measurements
            if item.trial in worker.open and item.step > self._record(item.trial).step
        ]
        failures = [failure for failure in cohort.failures if failure.trial in worker.open]
        self._source.report(fresh)
        for item in fresh:
            self._record(item.trial).progressed(item.step)
        for failure in failures:
            self._source.fail(failure)
        return sorted({item.trial for item in fresh} | {failure.trial for failure in failures})

    def _occupy(self, worker: _Worker) -> Iterator[Order]:
        """Fill the worker's free slots, or send it home if nothing will come any more."""
        if self._stopped is not None:
            yield _STOP
            return
        if worker.held:
            yield from self._release(worker)
        while not worker.held and len(worker.open) < worker.capacity:
            spec = self._source.next(worker.index)
            if spec is None:
                break
            yield worker.take(spec)
        if not worker.held:
            yield from self._take_over(worker)
        if not worker.open and not worker.held and self._source.finished:
            yield _STOP

    def _mark_lost(self, worker: _Worker) -> None:
        """Note that a worker died: what it trained waits for it to come back, or for another one."""
        for trial in worker.open:
            self._record(trial).died(alone=len(worker.open) == 1)
        worker.lost |= set(worker.open)
        worker.open.clear()

    def _take_over(self, worker: _Worker) -> Iterator[Order]:
        """Go on with trials of workers that died and are not back, if nothing else is left to do.

        The machine they were on may be gone, and there may be no other place for them.
        """
        for dead in self._workers.values():
            if dead.index not in self._present:
                free = max(0, worker.capacity - len(worker.open) - len(worker.held))  # a pack may have become smaller
                yield from self._resume(worker, dead, dead.waiting[:free])
        yield from self._release(worker)

    def _resume(self, worker: _Worker, dead: _Worker, trials: Iterable[int]) -> Iterator[Order]:
        """Give a worker trials that were lost or held when `dead` died, or end those that have killed too often."""
        for trial in sorted(trials):
            dead.lost.discard(trial)
            dead.held.pop(trial, None)
            if self._record(trial).alone >= _DEATHS_ALONE:
                self._source.fail(self._crash_of(trial))
                yield Order(kind=OrderKind.CLOSE, trial=trial)
            else:
                worker.held[trial] = self._source.restart(trial, worker.index)
                if worker is not dead:
                    logger.info("worker %d goes on with %s of worker %d", worker.index, trial_name(trial), dead.index)

    def _release(self, worker: _Worker) -> Iterator[Order]:
        """Open what a worker was given but does not train yet. A suspect trains alone until it has made progress."""
        if any(self._record(trial).suspected for trial in worker.open):
            return
        suspects = [trial for trial in sorted(worker.held) if self._record(trial).suspected]
        if suspects and len(worker.held) + len(worker.open) > 1:
            logger.warning(
                "%s trains alone: its worker died %d times without progress",
                trial_name(suspects[0]),
                self._record(suspects[0]).deaths,
            )
        if suspects:
            for trial in sorted(worker.open):
                worker.held[trial] = worker.open[trial]
                yield worker.let_go(trial, OrderKind.PARK)
        for trial in suspects[:1] or sorted(worker.held):
            yield worker.take(worker.held.pop(trial))

    def _crash_of(self, trial: int) -> TrialFailure:
        record = self._record(trial)
        return TrialFailure(
            trial=trial,
            step=max(record.step, 0),
            reason=StopReason.HOST_CRASH,
            message=f"killed its worker {record.alone} times while training alone, after step {max(record.step, 0)}",
        )

    def _record(self, trial: int) -> _Record:
        return self._records.setdefault(trial, _Record())


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A worker as the driver sees it.

    open: trials it trains; held: trials it was given, which wait; lost: trials it trained when it died.
    """

    index: int
    epoch: int
    capacity: int
    open: dict[int, TrialSpec] = field(default_factory=dict)
    held: dict[int, TrialSpec] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    @property
    def waiting(self) -> list[int]:
        """Trials that wait for it, or for another worker, while it is dead."""
        return sorted({*self.held, *self.lost})

    def take(self, spec: TrialSpec) -> Order:
        self.open[spec.number] = spec
        return Order(kind=OrderKind.OPEN, trial=spec.number, spec=spec)

    def let_go(self, trial: int, kind: OrderKind) -> Order:
        del self.open[trial]
        return Order(kind=kind, trial=trial)


@dataclass(slots=True)
class _Record:
    """How far a trial has come in this run, and how often its worker died since its last progress."""

    step: int = -1
    deaths: int = 0
    alone: int = 0

    @property
    def suspected(self) -> bool:
        return self.deaths > _DEATHS_IN_COMPANY

    def progressed(self, step: int) -> None:
        self.step, self.deaths, self.alone = step, 0, 0

    def died(self, *, alone: bool) -> None:
        self.deaths += 1
        self.alone += alone
