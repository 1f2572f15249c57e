"""What is said about a night, to people and to programs, and the tidying up after it. Nothing here fails the night."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from automl.errors import AutomlError
from automl.schedule.due import Settled
from automl.schedule.job import Outcome
from automl.schedule.nights import NightJob
from automl.schedule.notify import Notification, parse_target, send
from automl.schedule.options import ScheduleOptions, read_options, stored_targets
from automl.schedule.retention import retain
from automl.storage.jobs import FiringState, Schedule
from automl.storage.sql import Database

logger = logging.getLogger(__name__)

_HEADLINES = {
    FiringState.SUCCEEDED: "succeeded",
    FiringState.NO_IMPROVEMENT: "found nothing better",
    FiringState.REGRESSION: "REGRESSION",
    FiringState.FAILED: "FAILED",
    FiringState.TIMED_OUT: "stopped at its deadline",
    FiringState.MISSED: "did not run",
    FiringState.SKIPPED: "was skipped",
}

Tell = Callable[[tuple[str, ...], Notification], object]
"""Tells all targets, at once or later."""


def tell(targets: tuple[str, ...], message: Notification) -> list[str]:
    """Tell all targets, one after the other; what did not go well, one line each, also logged."""
    problems: list[str] = []
    for text in targets:
        target = parse_target(text)
        if (problem := send(target, message)) is not None:
            problems.append(problem)
            logger.warning("notification by %s failed: %s", target.kind, problem)
    return problems


def after_slots(written: Iterable[tuple[Schedule, Settled]], tell: Tell = tell) -> None:
    """Tell of slots that will not be run."""
    for schedule, settled in written:
        lost = [(slot, *why) for slot, why in settled.items() if why[0] is not FiringState.QUEUED]
        if not lost:
            continue
        slot, state, why = lost[-1]
        others = f"; so were {len(lost) - 1} slots before it" if len(lost) > 1 else ""
        _tell_if_wanted(tell, read_options(schedule.options), slot_message(schedule, slot, state, why + others), True)


def after_problem(schedule: Schedule, problem: str, tell: Tell = tell) -> None:
    """Log and tell that a schedule cannot be gone by, so that none of its slots is run."""
    logger.error("schedule %s cannot be read, none of its nights is run: %s", schedule.name, problem)
    if targets := stored_targets(schedule):
        tell(targets, problem_message(schedule, problem))


def after_night(job: NightJob, outcome: Outcome, tell: Tell = tell) -> None:
    """Log and tell."""
    logger.log(logging.WARNING if outcome.alert else logging.INFO, "%s: %s: %s", *outcome[:3])
    _tell_if_wanted(tell, job.options, night_message(job, outcome), outcome.alert)


def tidy_up(database: Database, schedule: Schedule) -> None:
    """Remove older nights that are not kept. May take minutes."""
    try:
        for removal in retain(database, schedule):
            logger.info("removed %s", removal)
    except AutomlError as error:
        logger.warning("schedule %s: older nights were not tidied up: %s", schedule.name, error)
    except Exception:
        logger.exception("schedule %s: older nights were not tidied up", schedule.name)


def _tell_if_wanted(tell: Tell, options: ScheduleOptions, message: Notification, is_alert: bool) -> None:
    if options.notify and (is_alert or options.notify_on == "always"):
        tell(options.notify, message)


def night_message(night: NightJob, outcome: Outcome) -> Notification:
    """About a night that has ended."""
    found = night.comparison
    detail = {"study": night.study, "value": night.value, "comparison": found.as_dict() if found else None}
    return _message(night.schedule, night.firing.slot, FiringState(outcome.state), outcome.message, detail)


def slot_message(schedule: Schedule, slot: datetime, state: FiringState, why: str) -> Notification:
    """About a slot that was not run."""
    return _message(schedule, slot, state, why, {})


def problem_message(schedule: Schedule, problem: str) -> Notification:
    """About a schedule whose nights are not run, because it cannot be read."""
    subject = f"automl: {schedule.name} cannot be read, none of its nights is run"
    host = socket.gethostname()
    detail = {"schedule": schedule.name, "state": "UNREADABLE", "message": problem, "host": host}
    return Notification(subject=subject, text=f"{problem}\n\nhost: {host}", detail=detail)


def _message(schedule: Schedule, slot: datetime, state: FiringState, text: str, more: dict[str, Any]) -> Notification:
    local = slot.astimezone(ZoneInfo(schedule.timezone))
    subject = f"automl: {schedule.name} of {local:%Y-%m-%d %H:%M} {_HEADLINES[state]}"
    lines = [
        text,
        "",
        *([f"study: {more['study']}"] if more.get("study") else []),
        f"host: {socket.gethostname()}",
        f"history: automl schedule history {schedule.name}",
    ]
    detail = {
        "schedule": schedule.name,
        "slot": slot.isoformat(),
        "local_time": local.isoformat(),
        "state": state.value,
        "message": text,
        "host": socket.gethostname(),
        **more,
    }
    return Notification(subject=subject, text="\n".join(lines), detail=detail)
