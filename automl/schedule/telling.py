"""What is said about a night, to people and to programs."""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from automl.schedule.job import Outcome
from automl.schedule.nights import NightJob
from automl.schedule.notify import Message
from automl.storage.jobs import FiringState, Schedule

_HEADLINES = {
    FiringState.SUCCEEDED: "succeeded",
    FiringState.NO_IMPROVEMENT: "found nothing better",
    FiringState.REGRESSION: "REGRESSION",
    FiringState.FAILED: "FAILED",
    FiringState.TIMED_OUT: "stopped at its deadline",
    FiringState.MISSED: "did not run",
    FiringState.SKIPPED: "was skipped",
}


def night_message(night: NightJob, outcome: Outcome) -> Message:
    """About a night that has ended."""
    found = night.comparison
    detail = {"study": night.study, "value": night.value, "comparison": found.as_dict() if found else None}
    return _message(night.schedule, night.firing.slot, FiringState(outcome.state), outcome.message, detail)


def slot_message(schedule: Schedule, slot: datetime, state: FiringState, why: str) -> Message:
    """About a slot that was not run."""
    return _message(schedule, slot, state, why, {})


def problem_message(schedule: Schedule, problem: str) -> Message:
    """About a schedule whose nights are not run, because it cannot be read."""
    subject = f"automl: {schedule.name} cannot be read, none of its nights is run"
    host = socket.gethostname()
    detail = {"schedule": schedule.name, "state": "UNREADABLE", "message": problem, "host": host}
    return Message(subject=subject, text=f"{problem}\n\nhost: {host}", detail=detail)


def _message(schedule: Schedule, slot: datetime, state: FiringState, text: str, more: dict[str, Any]) -> Message:
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
    return Message(subject=subject, text="\n".join(lines), detail=detail)
