"""A schedule for other people's clocks: a systemd timer or a Kubernetes CronJob that runs `schedule run NAME --once`.

They only wake us up: which slot is due, and whether it has run, is still decided in SQL, so they may stand beside a
scheduler, fire twice, or fire late.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Literal

from automl.errors import ConfigError, Problem
from automl.storage.jobs import Schedule

Kind = Literal["systemd", "cronjob"]

_FILES = {"systemd": "systemd.txt", "cronjob": "cronjob.yaml"}
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_FIRST = {"minute": 0, "hour": 0, "day": 1, "month": 1}
_STARTING_SECONDS = 3600


def manifest(kind: Kind, schedule: Schedule, program: str) -> str:
    """Text of the manifest. program: absolute path of the `automl` command (systemd).

    Raises ConfigError if the cron expression uses what the other side cannot express.
    """
    late = schedule.catch_up_seconds
    return (
        files("automl.schedule")
        .joinpath("templates", _FILES[kind])
        .read_text(encoding="utf-8")
        .format(
            name=schedule.name,
            unit=re.sub(r"[^a-z0-9]+", "-", schedule.name.lower()).strip("-")[:40].strip("-"),
            folder=schedule.folder,
            program=program,
            cron=_for_kubernetes(schedule.cron) if kind == "cronjob" else "",
            timezone=schedule.timezone,
            policy="Forbid" if schedule.overlap == "skip" else "Allow",
            starting_deadline=_STARTING_SECONDS if late is None else max(300, int(late)),
            calendar="\n".join(f"OnCalendar={line}" for line in calendar_lines(schedule)) if kind == "systemd" else "",
        )
    )


def calendar_lines(schedule: Schedule) -> list[str]:
    """Calendar events of systemd, see systemd.time(7), that together are due when the cron expression is.

    Where both days are restricted, cron asks for either one and systemd for both: that takes two lines.
    """
    minute, hour, day, month, weekday = _fields(schedule.cron)
    clock = f"{_number(hour, 'hour')}:{_number(minute, 'minute')}:00 {schedule.timezone}"
    months = _number(_named_months(month), "month")
    by_day = f"*-{months}-{_number(day, 'day')} {clock}"
    by_weekday = f"{_weekdays(weekday)} *-{months}-* {clock}"
    if weekday.startswith("*"):
        return [by_day]
    return [by_weekday] if day == "*" else [by_day, by_weekday]


def _fields(cron: str) -> list[str]:
    if re.search(r"[LW#?]", re.sub(r"[A-Z]{3}", "", cron.upper())):
        raise ConfigError([Problem("", 0, 0, "--cron", f"{cron!r} uses L or #, which only `automl scheduler` knows")])
    return cron.upper().split()


def _for_kubernetes(cron: str) -> str:
    return " ".join(_fields(cron))


def _number(text: str, field: str) -> str:
    """One field: lists, ranges `a-b` as `a..b`, steps `*/n` as `first/n`."""
    parts = []
    for part in text.split(","):
        span, _, step = part.partition("/")
        span = re.sub(r"^(\d+)-(\d+)$", r"\1..\2", span)
        if step and span == "*":
            span = str(_FIRST[field])
        parts.append(f"{span}/{step}" if step else span)
    return ",".join(parts)


def _named_months(text: str) -> str:
    for number, name in enumerate(_MONTHS, start=1):
        text = text.replace(name, str(number))
    return text


def _weekdays(text: str) -> str:
    """Every day named, for systemd's weeks begin on Monday and know no steps."""
    for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")):
        text = text.replace(name, str(number))
    days: list[str] = []
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = ("0-6" if span == "*" else span).partition("-")
        last = int(high) if high else 6 if step else int(low)
        days += [_DAYS[number] for number in range(int(low), last + 1, int(step or 1))]
    return ",".join(dict.fromkeys(days))
