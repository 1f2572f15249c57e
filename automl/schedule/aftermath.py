"""What follows a night: it is logged, people are told, and older nights are tidied up. Nothing here fails the night."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from automl.errors import AutomlError
from automl.schedule.due import Settled
from automl.schedule.job import Outcome
from automl.schedule.nights import NightJob
from automl.schedule.notify import Message, parse_target, send
from automl.schedule.options import Options, read_options, stored_targets
from automl.schedule.retention import retain
from automl.schedule.telling import night_message, problem_message, slot_message
from automl.storage.jobs import FiringState, Schedule
from automl.storage.sql import Database

logger = logging.getLogger(__name__)

Tell = Callable[[tuple[str, ...], Message], object]
"""Tells all targets, at once or later."""


def tell(targets: tuple[str, ...], message: Message) -> list[str]:
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


def _tell_if_wanted(tell: Tell, options: Options, message: Message, is_alert: bool) -> None:
    if options.notify and (is_alert or options.notify_on == "always"):
        tell(options.notify, message)
