"""Schedules and their nights in SQL. What is due is decided by `automl.schedule`; here it is made to happen once.

A schedule's `fired_until` moves forward by compare-and-set, in the same transaction that writes the rows of the slots
in between; the rows' key is schedule and slot. So each slot has exactly one row, however many schedulers look, and a
clock that goes back brings no slot back.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from automl.errors import StorageError
from automl.nearest import did_you_mean
from automl.storage.claims import Claimant
from automl.storage.jobs import Cause, Firing, FiringState, Overlap, Schedule
from automl.storage.sql import Database
from automl.storage.tables import firings, schedules

logger = logging.getLogger(__name__)

UNFINISHED = (FiringState.QUEUED, FiringState.RUNNING)
SUCCESSFUL = (FiringState.SUCCEEDED, FiringState.NO_IMPROVEMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a person says about a schedule; see `Schedule`."""

    cron: str
    timezone: str
    space_text: str
    folder: str
    overlap: Overlap
    catch_up_seconds: float | None
    deadline_seconds: float | None
    options: Mapping[str, Any]


def list_schedules(database: Database) -> list[Schedule]:
    """All schedules, by name."""
    with database.reading("list the schedules") as connection:
        return [_schedule(row) for row in connection.execute(select(schedules).order_by(schedules.c.name))]


def find_schedule(database: Database, name: str) -> Schedule:
    """The schedule of that name. Raises StorageError naming those there are."""
    known = {schedule.name: schedule for schedule in list_schedules(database)}
    if name not in known:
        there = f"there is: {', '.join(known) or 'none'}{did_you_mean(name, known)}"
        raise StorageError(f"no schedule {name!r}; {there}")
    return known[name]


def list_firings(
    database: Database,
    schedule: str | None = None,
    *,
    states: Sequence[FiringState] = (),
    before: datetime | None = None,
    limit: int | None = None,
) -> list[Firing]:
    """Nights, the latest first; of one schedule or of all; due before an instant."""
    query = select(firings).order_by(firings.c.slot.desc(), firings.c.schedule)
    if schedule is not None:
        query = query.where(firings.c.schedule == schedule)
    if states:
        query = query.where(firings.c.state.in_([state.value for state in states]))
    if before is not None:
        query = query.where(firings.c.slot < before)
    with database.reading("list the nights") as connection:
        return [_firing(row) for row in connection.execute(query.limit(limit)) if _is_known(row)]


def last_successful(database: Database, schedule: str, *, before: datetime | None = None) -> Firing | None:
    """The latest night of a schedule that was not worse than its own predecessor; None if there is none."""
    return next(iter(list_firings(database, schedule, states=SUCCESSFUL, before=before, limit=1)), None)


def schedules_with_nights(database: Database) -> list[str]:
    """Names of all schedules that have a night, also of those that were removed; found by the key, row by row."""
    found: list[str] = []
    with database.reading("list the schedules that have nights") as connection:
        query = select(func.min(firings.c.schedule))
        name = connection.execute(query).scalar()
        while name is not None:
            found.append(name)
            name = connection.execute(query.where(firings.c.schedule > name)).scalar()
    return found


class ScheduleStore:
    """Changes to schedules and nights by one process."""

    def __init__(self, claimant: Claimant) -> None:
        self._claimant = claimant
        self._database = claimant.database

    def add(self, name: str, definition: Definition, *, replace: bool = False) -> None:
        """Create a schedule whose first slot is the next one; with `replace`, change an existing one.

        Raises StorageError if it exists and `replace` is not set.
        """
        with self._database.writing(f"store schedule {name!r}") as connection:
            now = self._claimant.now_in(connection)
            exists = connection.execute(select(schedules.c.version).where(schedules.c.name == name)).scalar()
            if exists is not None and not replace:
                raise StorageError(f"schedule {name!r} exists already; change it with --replace")
            # A slot that was due under the old expression is settled by the old one or, from now on, not at all.
            values = {**_columns(definition), "fired_until": now, "updated_at": now}
            if exists is None:
                values |= {"name": name, "state": "ACTIVE", "version": 0, "created_at": now}
                connection.execute(insert(schedules).values(values))
            else:
                statement = update(schedules).where(schedules.c.name == name)
                connection.execute(statement.values(**values, version=schedules.c.version + 1))

    def pause(self, name: str) -> None:
        """No slot is due until it is resumed. A night that runs goes on. Raises StorageError if there is none."""
        self._set_state(name, "PAUSED")

    def resume(self, name: str) -> None:
        """Slots are due again, from now on. Raises StorageError if there is none."""
        self._set_state(name, "ACTIVE")

    def remove(self, name: str) -> None:
        """Forget the schedule; its nights stay, those still queued as SKIPPED. Raises StorageError if there is none."""
        find_schedule(self._database, name)
        with self._database.writing(f"remove schedule {name!r}") as connection:
            self._skip_queued(connection, name, "the schedule was removed", only=None)
            connection.execute(delete(schedules).where(schedules.c.name == name))

    def fire(self, seen: Schedule, until: datetime, slots: Mapping[datetime, tuple[FiringState, str]]) -> bool:
        """Write the rows of all slots in (seen.fired_until, until], in one transaction.

        slots: instant -> QUEUED, MISSED or SKIPPED, and why. False, and nothing written, if the schedule was changed
        since it was read: somebody else has been here.
        """
        with self._database.writing(f"fire schedule {seen.name!r}") as connection:
            moved = {"fired_until": until, "version": seen.version + 1}
            unchanged = (schedules.c.name == seen.name) & (schedules.c.version == seen.version)
            if connection.execute(update(schedules).where(unchanged).values(moved)).rowcount != 1:
                return False
            now = self._claimant.now_in(connection)
            rows = [_new_row(seen.name, slot, "cron", state, why, now) for slot, (state, why) in slots.items()]
            if FiringState.QUEUED in (state for state, _ in slots.values()):
                self._skip_queued(connection, seen.name, "a later slot took its place", only="cron")
            if rows:
                dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
                connection.execute(dialect.insert(firings).on_conflict_do_nothing(), rows)
        return True

    def fire_by_hand(self, name: str) -> Firing:
        """Write a queued row for this moment, as a slot of its own."""
        with self._database.writing(f"fire schedule {name!r}") as connection:
            now = self._claimant.now_in(connection)
            row = _new_row(name, now, "hand", FiringState.QUEUED, "", now)
            return _firing(connection.execute(insert(firings).values(row).returning(firings)).one())

    def unfinished(self, name: str) -> list[Firing]:
        """Nights of a schedule that are queued or running."""
        return list_firings(self._database, name, states=UNFINISHED)

    def take(
        self, schedule: str | None = None, slot: datetime | None = None, *, without: Collection[str] = ()
    ) -> Firing | None:
        """The next night that nobody works on, now this process's own; None if there is none.

        At most one night of a schedule runs at a time. without: schedules whose nights stay where they are.
        """
        with self._database.reading("look for a night to run") as connection:
            rows = self._claimant.takeable(connection, firings, firings.c.slot, firings.c.schedule)
            busy = set(connection.execute(select(firings.c.schedule).where(firings.c.state == "RUNNING")).scalars())
        for row in rows:
            if (schedule is not None and row.schedule != schedule) or (slot is not None and row.slot != slot):
                continue
            if row.schedule in without:
                continue
            if row.state == "QUEUED" and row.schedule in busy:
                continue
            taken = self._claimant.take(firings, row)
            if taken is not None:
                return _firing(taken)
        return None

    def name_study(self, firing: Firing, study: str) -> bool:
        """Record the study of a night that this process runs; False if it is this process's no longer."""
        with self._database.writing("name the study of a night") as connection:
            mine = (firings.c.schedule == firing.schedule) & (firings.c.slot == firing.slot)
            statement = update(firings).where(mine, firings.c.owner == self._claimant.owner)
            return bool(connection.execute(statement.values(study_name=study)).rowcount)

    def renew(self, firing: Firing) -> bool:
        """Extend the lease; False if the night is this process's no longer."""
        return self._claimant.renew(firings, _key(firing))

    def requeue(self, firing: Firing, message: str, *, wait_seconds: float = 0.0, counts: bool = True) -> bool:
        """Put the night back, to be continued by whoever takes it; False if it is this process's no longer."""
        return self._claimant.requeue(firings, _key(firing), message, wait_seconds=wait_seconds, counts=counts)

    def end(
        self,
        firing: Firing,
        state: FiringState,
        message: str,
        *,
        exit_code: int | None = None,
        value: float | None = None,
        comparison: Mapping[str, Any] | None = None,
    ) -> bool:
        """Record how the night ended; False if it is this process's no longer."""
        values: dict[str, Any] = {"message": message, "exit_code": exit_code, "value": value}
        values["comparison"] = None if comparison is None else dict(comparison)
        return self._claimant.end(firings, _key(firing), state.value, values)

    def accept(self, name: str) -> Firing:
        """Make the latest night, a regression, the one that later nights are compared with.

        Raises StorageError if the latest finished night is none.
        """
        latest = next(iter(list_firings(self._database, name, states=(*SUCCESSFUL, FiringState.REGRESSION))), None)
        if latest is None or latest.state is not FiringState.REGRESSION:
            raise StorageError(f"schedule {name!r}: the latest finished night is no regression; nothing to accept")
        key = (firings.c.schedule == latest.schedule) & (firings.c.slot == latest.slot)
        values = {"state": FiringState.NO_IMPROVEMENT.value, "message": f"accepted by hand; was: {latest.message}"}
        with self._database.writing(f"accept a night of {name!r}") as connection:
            return _firing(connection.execute(update(firings).where(key).values(values).returning(firings)).one())

    def _set_state(self, name: str, state: str) -> None:
        find_schedule(self._database, name)
        with self._database.writing(f"change schedule {name!r}") as connection:
            now = self._claimant.now_in(connection)
            values: dict[str, Any] = {"state": state, "updated_at": now, "version": schedules.c.version + 1}
            later = func.max if connection.dialect.name == "sqlite" else func.greatest
            if state == "ACTIVE":
                values["fired_until"] = later(schedules.c.fired_until, now, type_=schedules.c.fired_until.type)
            changed = (schedules.c.name == name) & (schedules.c.state != state)
            connection.execute(update(schedules).where(changed).values(values))

    def _skip_queued(self, connection: Connection, name: str, why: str, *, only: Cause | None) -> None:
        waiting = (firings.c.schedule == name) & (firings.c.state == "QUEUED") & (firings.c.attempts == 0)
        if only is not None:
            waiting &= firings.c.cause == only
        skipped = {"state": FiringState.SKIPPED.value, "message": why, "ended_at": self._claimant.now_in(connection)}
        connection.execute(update(firings).where(waiting).values(skipped))


def _columns(definition: Definition) -> dict[str, Any]:
    return {
        "cron": definition.cron,
        "timezone": definition.timezone,
        "space_text": definition.space_text,
        "folder": definition.folder,
        "overlap": definition.overlap,
        "catch_up_seconds": definition.catch_up_seconds,
        "deadline_seconds": definition.deadline_seconds,
        "options": dict(definition.options),
    }


def _new_row(
    schedule: str, slot: datetime, cause: Cause, state: FiringState, message: str, now: datetime
) -> dict[str, Any]:
    return {
        "schedule": schedule,
        "slot": slot,
        "cause": cause,
        "state": state.value,
        "attempts": 0,
        "created_at": now,
        "ended_at": None if state is FiringState.QUEUED else now,
        "message": message,
    }


def _is_known(row: Row[Any]) -> bool:
    """Whether this version knows the night's state; another one may have written it."""
    known = row.state in FiringState.__members__.values()
    if not known:
        logger.warning("schedule %s: the night of %s is in an unknown state, %s", row.schedule, row.slot, row.state)
    return known


def _key(firing: Firing) -> dict[str, Any]:
    return {"schedule": firing.schedule, "slot": firing.slot}


def _schedule(row: Row[Any]) -> Schedule:
    return Schedule(
        name=row.name,
        cron=row.cron,
        timezone=row.timezone,
        space_text=row.space_text,
        folder=row.folder,
        is_paused=row.state != "ACTIVE",  # an unknown state, of another version, fires nothing
        overlap=row.overlap,
        catch_up_seconds=row.catch_up_seconds,
        deadline_seconds=row.deadline_seconds,
        options=row.options,
        fired_until=row.fired_until,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _firing(row: Row[Any]) -> Firing:
    return Firing(
        schedule=row.schedule,
        slot=row.slot,
        cause=row.cause,
        state=FiringState(row.state),
        study=row.study_name,
        attempts=row.attempts,
        owner=row.owner,
        lease_until=row.lease_until,
        not_before=row.not_before,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        exit_code=row.exit_code,
        value=row.value,
        comparison=row.comparison,
        message=row.message,
    )
