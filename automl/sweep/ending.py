"""How a run of a search is recorded: what it was to do, and why it ended, whichever way that was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from automl.errors import AutomlError, BudgetSpent, ClusterLost, InterruptedSearch, TimeIsUp
from automl.space.spec import SweepSpec
from automl.storage.base import RunEnd
from automl.storage.runs import Price, RunLog

logger = logging.getLogger(__name__)


@contextmanager
def recorded_run(log: RunLog, spec: SweepSpec) -> Iterator[RunLog]:
    """Record the run, and what it ends with if it ends by an error; that it has finished is for the block to record."""
    cost = spec.search.budget.cost
    price = None if cost is None else Price(cost.per_gpu_hour, cost.currency)
    steps = spec.search.steps if spec.search.knows_steps else 0
    log.begin(trials=spec.search.trials, steps=steps, metric=spec.task.metric, price=price)
    try:
        yield log
    except BaseException as error:
        try:
            _record(log, _end_of(error))
        except AutomlError as second:  # the database is away, or the lease is lost: the first error is the one to tell
            logger.debug("the end of the run was not recorded: %s", second)
        raise


def _record(log: RunLog, how: RunEnd) -> None:
    if how is RunEnd.FAILED and not log.has_trained:
        log.forget()
    else:
        log.end(how)


def _end_of(error: BaseException) -> RunEnd:
    if isinstance(error, TimeIsUp):
        return RunEnd.TIME
    if isinstance(error, BudgetSpent):
        return RunEnd.BUDGET
    if isinstance(error, ClusterLost):
        return RunEnd.INTERRUPTED
    return RunEnd.STOPPED if isinstance(error, InterruptedSearch | KeyboardInterrupt) else RunEnd.FAILED
