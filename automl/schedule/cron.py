"""When a cron expression is due, in a time zone, through every change of its clocks.

An expression names wall-clock times; `cronsim` enumerates them, and each becomes an instant by these rules, which are
those of Debian's cron, stated for single times:

- An expression with fixed minutes and hours, such as `0 2 * * *`, is due once for each time it names. If the clocks
  skip that time, it is due when they have jumped; if the day does not exist at all, it is not due. If the clocks show
  that time twice, it is due the first time only. Of times that fall on one instant, one is due.
- An expression with `*` in minutes or hours, such as `*/15 * * * *`, goes by elapsed time: times that the clocks skip
  are not due, times that they show twice are due twice.

Instants are UTC, strictly increasing, and depend on nothing but expression, zone and the range asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from automl.errors import ConfigError, Problem

_AROUND = timedelta(hours=26)
"""Further than any clock is from UTC, or has ever been put forward or back (Samoa skipped 24 hours in 2011)."""
_FIRST_LOOK = timedelta(days=2)
_A_BATCH = 1000
_LAST_LOOK = timedelta(days=366 * 30)
_EXAMPLE = "'0 2 * * *' is every night at two"


def check_cron(expression: str, timezone: str) -> None:
    """Raise ConfigError unless the expression has five fields that name some future time, and the zone exists."""
    problems = [
        Problem("", 0, 0, option, message)
        for option, message in (
            ("--cron", _cron_problem(expression)),
            ("--timezone", _zone_problem(timezone)),
        )
        if message
    ]
    if problems:
        raise ConfigError(problems)


def timing_problem(expression: str, timezone: str) -> str:
    """What is wrong with an expression or a zone that somebody has stored, in one line; empty if nothing is."""
    return _cron_problem(expression) or _zone_problem(timezone)


def zone_of(name: str) -> tzinfo:
    """The zone, or UTC where this machine does not know it: for showing times."""
    return UTC if _zone_problem(name) else _zone(name)


def due_batch(expression: str, timezone: str, after: datetime, until: datetime) -> tuple[list[datetime], datetime]:
    """The first instants of `due_slots`, of a long time some thousand: those up to the returned instant."""
    look = _FIRST_LOOK
    while True:
        end = min(until, after + look)
        found = due_slots(expression, timezone, after, end)
        if end == until or len(found) >= _A_BATCH:
            return found, end
        look *= 4


def due_slots(expression: str, timezone: str, after: datetime, until: datetime) -> list[datetime]:
    """Every instant in (after, until] at which the expression is due, in order, in UTC. Both ends must be aware."""
    zone = _zone(timezone)
    first, last = after.astimezone(UTC), until.astimezone(UTC)
    if last <= first:
        return []
    # Far from a change of the clocks local time is UTC plus a constant, and only the range itself need be looked at.
    offsets = {(moment).astimezone(zone).utcoffset() for moment in (first - _AROUND, first, last, last + _AROUND)}
    is_long = last - first > timedelta(days=7)
    margin = _AROUND if is_long or len(offsets) > 1 else timedelta(0)
    low, high = ((moment).astimezone(zone).replace(tzinfo=None) for moment in (first - margin, last + margin))
    by_elapsed_time = _goes_by_elapsed_time(expression)
    found = {
        instant
        for nominal in takewhile(lambda time: time <= high, _wall_times(expression, low))
        for instant in _instants(nominal, zone, by_elapsed_time=by_elapsed_time)
        if first < instant <= last
    }
    return sorted(found)


def next_slots(expression: str, timezone: str, after: datetime, count: int) -> list[datetime]:
    """The next `count` instants after `after`; fewer if the expression names fewer in the coming 30 years."""
    look = _FIRST_LOOK
    while True:
        found = due_slots(expression, timezone, after, after + look)
        if len(found) >= count or look >= _LAST_LOOK:
            return found[:count]
        look = min(look * 4, _LAST_LOOK)


def _instants(nominal: datetime, zone: ZoneInfo, *, by_elapsed_time: bool) -> Iterator[datetime]:
    """Instants at which the zone's clocks show this time, and what stands in for them if there are none."""
    early, late = (nominal.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    exists = early.astimezone(zone).replace(tzinfo=None) == nominal
    if exists:
        yield early
        if by_elapsed_time and late != early:
            yield late
    elif not by_elapsed_time:
        jump = _end_of_gap(late, early, zone)
        around = (moment.astimezone(zone).date() for moment in (jump - timedelta(seconds=1), jump))
        if nominal.date() in around:
            yield jump


def _end_of_gap(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The instant between the two, to the second, from which on the later offset holds."""
    later = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == later:
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


def _wall_times(expression: str, low: datetime) -> Iterator[datetime]:
    """Times named by the expression from `low` on, as clocks would show them that never change."""
    return iter(CronSim(expression, low - timedelta(minutes=1)))


def _goes_by_elapsed_time(expression: str) -> bool:
    minutes, hours, *_ = expression.split()
    return minutes.startswith("*") or hours.startswith("*")


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _cron_problem(expression: str) -> str:
    if len(expression.split()) != 5:
        return f"{expression!r} has not five fields (minute, hour, day of month, month, day of week); {_EXAMPLE}"
    try:
        times = CronSim(expression, datetime(2025, 1, 1))
        if not list(islice(times, 1)):
            return f"{expression!r} names no time that ever comes"
    except CronSimError as error:
        return f"{expression!r}: {str(error)[:1].lower()}{str(error)[1:]}; {_EXAMPLE}"
    return ""


def _zone_problem(name: str) -> str:
    try:
        _zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"{name!r} is not an IANA time zone such as 'Europe/Berlin' or 'UTC'"
    return ""
