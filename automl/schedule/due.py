"""Which slots are due and what becomes of each: run now, missed, or skipped. Pure decisions; SQL makes them happen."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from automl.errors import ConfigError, Problem
from automl.schedule.cron import due_batch
from automl.schedule.options import schedule_problem
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState, Schedule
from automl.storage.schedules import ScheduleStore, list_schedules

logger = logging.getLogger(__name__)

Settled = Mapping[datetime, tuple[FiringState, str]]

LEAST_CATCH_UP = timedelta(minutes=5)
"""A slot is never missed for being noticed this late: a scheduler that restarts, or is busy, is not downtime."""

_LOGGED = 10
_UNSEEN = FiringState.MISSED, "no scheduler was there before the next slot was due"
CATCHING_UP_SECONDS = 2.0
"""How long one look may write the rows of slots that nobody has seen; the rest is left to the next one."""

Unreadable = Callable[[Schedule, str], None]


def refuse(schedule: Schedule, problem: str) -> None:
    """Raise ConfigError: for whoever asks for this schedule alone."""
    raise ConfigError([Problem("", 0, 0, f"schedule {schedule.name}", problem)])


def fire_due(
    claimant: Claimant,
    *,
    only: str | None = None,
    unreadable: Unreadable = refuse,
    seconds: float = CATCHING_UP_SECONDS,
) -> list[tuple[Schedule, Settled]]:
    """Write the rows of all slots that have become due; what this process has written, by schedule.

    only: a single schedule. unreadable: told of a schedule that this program cannot go by, and why; the others
    are fired all the same. seconds: for the slots of one schedule, at least one batch of them.
    """
    written: list[tuple[Schedule, Settled]] = []
    for schedule in list_schedules(claimant.database):
        if schedule.is_paused or only not in (None, schedule.name):
            continue
        if problem := schedule_problem(schedule):
            unreadable(schedule, problem)
        elif settled := _fire(claimant, schedule, seconds):
            _log(schedule, settled)
            written.append((schedule, settled))
    return written


def _fire(claimant: Claimant, schedule: Schedule, seconds: float) -> Settled:
    """What has become of the slots of one schedule; after a long downtime of the first of them."""
    store = ScheduleStore(claimant)
    written: dict[datetime, tuple[FiringState, str]] = {}
    stop_at = time.monotonic() + seconds
    while (now := claimant.now()) > schedule.fired_until and time.monotonic() < stop_at:
        slots, until = due_batch(schedule.cron, schedule.timezone, schedule.fired_until, now)
        if not slots:
            break
        is_busy = bool(store.unfinished(schedule.name))
        settled = settle(schedule, slots, now, is_busy=is_busy) if until == now else dict.fromkeys(slots, _UNSEEN)
        if not store.fire(schedule, until, settled):
            break
        written |= settled
        if until == now:
            break
        schedule = replace(schedule, fired_until=until, version=schedule.version + 1)
    return written


def settle(schedule: Schedule, slots: Sequence[datetime], now: datetime, *, is_busy: bool) -> Settled:
    """What becomes of slots that are due together, in order: at most the latest is run.

    is_busy: an earlier night of the schedule is queued or running.
    """
    *earlier, latest = slots
    settled = dict.fromkeys(earlier, _UNSEEN)
    late = now - latest
    if schedule.catch_up_seconds is not None and late > max(LEAST_CATCH_UP, _seconds(schedule.catch_up_seconds)):
        settled[latest] = FiringState.MISSED, f"noticed {_spelt(late)} late, more than the schedule catches up"
    elif is_busy and schedule.overlap == "skip":
        settled[latest] = FiringState.SKIPPED, "the night before had not ended"
    else:
        settled[latest] = FiringState.QUEUED, f"caught up {_spelt(late)} late" if late > LEAST_CATCH_UP else ""
    return settled


def _log(schedule: Schedule, settled: Settled) -> None:
    if len(settled) > _LOGGED:
        logger.warning("schedule %s: %d slots were missed", schedule.name, len(settled) - _LOGGED)
    for slot, (state, why) in list(settled.items())[-_LOGGED:]:
        level = logging.INFO if state is FiringState.QUEUED else logging.WARNING
        logger.log(
            level, "schedule %s: slot %s is %s%s", schedule.name, f"{slot:%Y-%m-%dT%H:%MZ}", state, why and ": " + why
        )


def _seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def _spelt(duration: timedelta) -> str:
    """`9 min`, `3 h 20 min`, `2 d 5 h`."""
    minutes = int(duration.total_seconds() // 60)
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {rest} min" if hours else f"{rest} min"
