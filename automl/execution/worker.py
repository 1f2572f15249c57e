"""The worker's half of the conversation: obeys orders, trains, answers with a cohort. Knows no Ray, Optuna or SQL."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from automl.errors import MetricError, ResourceError
from automl.execution.base import Host
from automl.trial import Cohort, Measurement, Metrics, Order, OrderKind, TrialFailure, TrialSpec, failure_of

logger = logging.getLogger(__name__)


class Worker:
    """One start of one worker: `index` names it, `epoch` counts its starts from 1.

    `idle_seconds` is how long it waits before it asks again when it has nothing to train.
    """

    def __init__(
        self,
        host: Host,
        index: int,
        *,
        epoch: int = 1,
        idle_seconds: float = 0.5,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._host = host
        self._index = index
        self._epoch = epoch
        self._idle_seconds = idle_seconds
        self._wait = wait
        self._clock = clock
        self._began = clock()
        self._busy_before = host.busy_seconds
        self._vacant = 0.0  # seconds without any trial, because the driver had none
        self._vacant_since: float | None = None
        self._seq = -1
        self._residents: set[int] = set()
        self.stopped = False

    def hello(self) -> Cohort:
        """The first cohort of this start; the first start of worker 0 brings the untrained baseline."""
        first = self._index == 0 and self._epoch == 1
        baseline = self._baseline() if first else None
        self._began, self._busy_before = self._clock(), self._host.busy_seconds
        return self._cohort(hello=True, baseline=baseline)

    def _baseline(self) -> Metrics | None:
        """What the untrained model is worth; None if that cannot be judged, which is no reason to train nothing."""
        try:
            return self._host.baseline()
        except MetricError as error:
            logger.warning("the untrained model is not measured: %s", error)
            return None

    def step(self, orders: Sequence[Order]) -> Cohort:
        """Obey the orders, then train until there is something to report.

        What slot files already hold is published before any further step: the driver may want to stop such a trial
        exactly there. Raises what the host raises; such an error is the worker's, not one trial's.
        """
        self._end_vacancy()
        news = list(self._obey(orders))
        if not news and not self.stopped:
            news = list(self._host.advance())
            if not news:
                self._vacant_since = self._clock()
                self._wait(self._idle_seconds)
        failures = tuple(item for item in news if isinstance(item, TrialFailure))
        self._residents -= {failure.trial for failure in failures}
        measurements = tuple(item for item in news if isinstance(item, Measurement))
        return self._cohort(measurements=measurements, failures=failures)

    def _cohort(self, **content: Any) -> Cohort:
        self._seq += 1
        busy = self._host.busy_seconds - self._busy_before
        elapsed = self._clock() - self._began - self._vacant
        return Cohort(
            worker=self._index,
            epoch=self._epoch,
            seq=self._seq,
            capacity=self._host.capacity,
            busy_seconds=busy,
            idle_seconds=max(0.0, elapsed - busy),
            **content,
        )

    def _end_vacancy(self) -> None:
        if self._vacant_since is not None:
            self._vacant += self._clock() - self._vacant_since
            self._vacant_since = None

    def _obey(self, orders: Sequence[Order]) -> Iterator[Measurement | TrialFailure]:
        """Memory is freed before it is taken: what is closed or parked goes first."""
        for order in sorted(orders, key=lambda order: order.kind is OrderKind.OPEN):
            if order.kind is OrderKind.STOP:
                self._stop()
            elif order.kind is OrderKind.PARK:
                self._host.park(order.trial)
                self._residents.discard(order.trial)
            elif order.kind is OrderKind.CLOSE:
                self._host.close(order.trial)
                self._residents.discard(order.trial)
            elif order.spec is not None:
                yield from self._open(order.spec)

    def _open(self, spec: TrialSpec) -> Sequence[Measurement | TrialFailure]:
        try:
            known = self._host.open(spec)
        except ResourceError:
            raise
        except Exception as error:  # noqa: BLE001 - the executor's edge: a trial that cannot start is data
            self._host.close(spec.number)
            return [failure_of(error, trial=spec.number, step=0)]
        self._residents.add(spec.number)
        return known

    def _stop(self) -> None:
        for trial in sorted(self._residents):
            self._host.park(trial)
        self._residents.clear()
        self.stopped = True
