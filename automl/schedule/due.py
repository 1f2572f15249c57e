"""Which slots are due and what becomes of each: run now, missed, or skipped. Pure decisions; SQL makes them happen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from automl.schedule.cron import due_slots
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState, Schedule
from automl.storage.schedules import ScheduleStore, list_schedules

logger = logging.getLogger(__name__)

Settled = Mapping[datetime, tuple[FiringState, str]]

LEAST_CATCH_UP = timedelta(minutes=5)
"""A slot is never missed for being noticed this late: a scheduler that restarts, or is busy, is not downtime."""

_MOST_SLOTS = 5000


def fire_due(claimant: Claimant, *, only: str | None = None) -> list[tuple[Schedule, Settled]]:
    """Write the rows of all slots that have become due; what this process has written, by schedule.

    only: of this schedule alone.
    """
    store = ScheduleStore(claimant)
    written: list[tuple[Schedule, Settled]] = []
    now = claimant.now()
    for schedule in list_schedules(claimant.database):
        if schedule.is_paused or now <= schedule.fired_until or only not in (None, schedule.name):
            continue
        slots = due_slots(schedule.cron, schedule.timezone, schedule.fired_until, now)
        if not slots:
            continue
        until = now if len(slots) <= _MOST_SLOTS else slots[_MOST_SLOTS - 1]
        settled = settle(schedule, slots[:_MOST_SLOTS], now, is_busy=bool(store.unfinished(schedule.name)))
        if store.fire(schedule, until, settled):
            _log(schedule, settled)
            written.append((schedule, settled))
    return written


def settle(schedule: Schedule, slots: Sequence[datetime], now: datetime, *, is_busy: bool) -> Settled:
    """What becomes of slots that are due together, in order: at most the latest is run.

    is_busy: an earlier night of the schedule is queued or running.
    """
    *earlier, latest = slots
    settled = dict.fromkeys(earlier, (FiringState.MISSED, "no scheduler was there before the next slot was due"))
    late = now - latest
    if schedule.catch_up_seconds is not None and late > max(LEAST_CATCH_UP, _seconds(schedule.catch_up_seconds)):
        settled[latest] = FiringState.MISSED, f"noticed {_spelt(late)} late, more than the schedule catches up"
    elif is_busy and schedule.overlap == "skip":
        settled[latest] = FiringState.SKIPPED, "the night before had not ended"
    else:
        settled[latest] = FiringState.QUEUED, f"caught up {_spelt(late)} late" if late > LEAST_CATCH_UP else ""
    return settled


def _log(schedule: Schedule, settled: Settled) -> None:
    for slot, (state, why) in settled.items():
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
