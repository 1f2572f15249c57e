"""One night, here and now, without a scheduler: for cron, systemd and Kubernetes, and for trying a schedule out."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from automl.errors import InterruptedSearch, StorageError, StudyBusyError
from automl.schedule.due import fire_due, refuse
from automl.schedule.job import REGRESSION, Outcome, Place
from automl.schedule.job_run import JobRun
from automl.schedule.nights import NightJob
from automl.schedule.notices import after_night, after_slots, tidy_up
from automl.schedule.options import schedule_problem
from automl.storage.claims import Claimant
from automl.storage.jobs import Firing, FiringState
from automl.storage.schedules import UNFINISHED, ScheduleStore, find_schedule, list_firings

logger = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
_NO_RESULT = 1

_EXIT_CODES = {
    FiringState.SUCCEEDED: 0,
    FiringState.NO_IMPROVEMENT: 0,
    FiringState.REGRESSION: REGRESSION,
    FiringState.TIMED_OUT: _NO_RESULT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """night: as it ended; None if there was nothing to run. exit_code: for the command line."""

    night: Firing | None
    text: str
    exit_code: int


def run_due(claimant: Claimant, name: str, place: Place, stop: threading.Event) -> Done:
    """Run the night of the schedule that is due, or that a dead process has left; nothing if it is over or in hand.

    Raises StorageError if there is no such schedule, ConfigError if it cannot be read, InterruptedSearch if `stop` was
    set: the night can be continued.
    """
    _find_readable(claimant, name)
    while written := fire_due(claimant, only=name):  # several times after a long downtime
        after_slots(written)
    store = ScheduleStore(claimant)
    while True:
        firing = store.take(name)
        if firing is not None:
            return _run(claimant, firing, place, stop)
        waiting = store.unfinished(name)
        if not waiting:
            return Done(night=None, text="nothing is due", exit_code=0)
        # A night that runs keeps all others waiting; without one, the oldest is what may be taken next.
        first = next((night for night in waiting if night.state is FiringState.RUNNING), waiting[-1])
        if not _wait_for_silence(claimant, first, stop):
            return Done(night=None, text=f"a night is being run by {first.owner}", exit_code=0)


def run_now(claimant: Claimant, name: str, place: Place, stop: threading.Event) -> Done:
    """Run a night of the schedule at once, beside its slots. Raises StudyBusyError while another one is not over."""
    _find_readable(claimant, name)
    store = ScheduleStore(claimant)
    for night in store.unfinished(name):
        raise StudyBusyError(f"schedule {name!r}: the night of {night.slot:%Y-%m-%d %H:%M} UTC is {night.state.value}")
    firing = store.take(name, store.fire_by_hand(name).slot)
    if firing is None:
        raise StudyBusyError(f"schedule {name!r}: another night began at this moment; this one is queued")
    return _run(claimant, firing, place, stop)


def _find_readable(claimant: Claimant, name: str) -> None:
    schedule = find_schedule(claimant.database, name)
    if problem := schedule_problem(schedule):
        refuse(schedule, problem)


def _run(claimant: Claimant, firing: Firing, place: Place, stop: threading.Event) -> Done:
    store = ScheduleStore(claimant)
    taken: Firing | None = firing
    while taken is not None:
        job = NightJob(claimant, find_schedule(claimant.database, taken.schedule), taken, place)
        outcome = _to_its_end(JobRun(job, place, claimant.now), stop)
        if outcome is not None:
            after_night(job, outcome)
            tidy_up(claimant.database, job.schedule)
        night = _as_it_is(claimant, firing)
        if night.state not in UNFINISHED:
            code = _EXIT_CODES.get(night.state, night.exit_code or _NO_RESULT)
            return Done(night=night, text=f"{night.state.value}: {night.message}", exit_code=code)
        if stop.is_set():
            raise InterruptedSearch(f"{job.name}: stopped; the same command continues it")
        _wait_for_silence(claimant, night, stop)  # it was given back, to be tried again after a while
        taken = store.take(firing.schedule, firing.slot)
    return Done(night=night, text=f"taken over by {_as_it_is(claimant, firing).owner}", exit_code=0)


def _to_its_end(run: JobRun, stop: threading.Event) -> Outcome | None:
    while True:
        if stop.wait(_GLANCE_SECONDS):
            run.leave()
            time.sleep(_GLANCE_SECONDS)
        try:
            is_over, outcome = run.tick()
        except StorageError as error:
            logger.warning("the database is away: %s", error)
            stop.wait(_PATIENCE_SECONDS)
            continue
        if is_over:
            return outcome


def _wait_for_silence(claimant: Claimant, night: Firing, stop: threading.Event) -> bool:
    """Wait until a night may be taken: False if its owner was heard of meanwhile, and so lives.

    Raises InterruptedSearch if `stop` is set first.
    """
    until = night.lease_until or night.not_before
    while until is not None and claimant.now() <= until:
        if stop.wait(1.0):
            raise InterruptedSearch("stopped before any night was run; the same command runs it")
        if _as_it_is(claimant, night).lease_until != night.lease_until:
            return False
    return True


def _as_it_is(claimant: Claimant, night: Firing) -> Firing:
    return next(each for each in list_firings(claimant.database, night.schedule) if each.slot == night.slot)
