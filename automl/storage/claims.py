"""Taking jobs out of a table: one owner at a time, by compare-and-set, with a lease on the database's clock.

A job is a row that is QUEUED, then RUNNING under an owner who renews its lease, then in one of its final states. That
of an owner who dies is taken over: at once if the process ran on this machine, else when its lease ends. One that lives
on this machine keeps it, renewed or not. Every change by an owner names that owner, so whoever has lost a job changes
nothing of it any more.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, or_, select, update
from sqlalchemy.exc import IntegrityError

from automl.errors import StorageError
from automl.storage.lease import holds
from automl.storage.process import process_identity
from automl.storage.sql import Database
from automl.storage.tables import Now

Clock = Callable[[], datetime]

LEASE_SECONDS = 60.0


class Claimant:
    """One process that takes jobs. clock: stands in for the database's clock, for tests that move time by hand."""

    def __init__(self, database: Database, *, lease_seconds: float = LEASE_SECONDS, clock: Clock | None = None) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.process = process_identity()
        self.database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._clock = clock

    def now(self) -> datetime:
        """The present, by the database's clock."""
        with self.database.reading("read the clock") as connection:
            return self.now_in(connection)

    def now_in(self, connection: Connection) -> datetime:
        """The present, within a transaction."""
        if self._clock is not None:
            return self._clock()
        found: datetime = connection.execute(select(Now())).scalar_one()
        return found

    def take(self, table: Table, row: Row[Any]) -> Row[Any] | None:
        """Make a job this process's own, as it was when `row` was read; None if somebody else was faster."""
        was = table.c.owner.is_(None) if row.owner is None else table.c.owner == row.owner
        try:
            with self.database.writing(f"take a row of {table.name}") as connection:
                now = self.now_in(connection)
                mine = {
                    "state": "RUNNING",
                    "owner": self.owner,
                    "owner_process": self.process,
                    "lease_until": now + self._lease,
                    "not_before": None,
                    "attempts": row.attempts + 1,
                    "started_at": row.started_at or now,
                }
                statement = update(table).where(_key(table, row), table.c.state == row.state, was)
                unchanged = statement.where(table.c.attempts == row.attempts).values(mine).returning(table)
                return connection.execute(unchanged).first()
        except StorageError as error:
            if isinstance(error.__cause__, IntegrityError):  # of two jobs that exclude each other, the other one runs
                return None
            raise

    def takeable(self, connection: Connection, table: Table, *order: ColumnElement[Any]) -> list[Row[Any]]:
        """Jobs that nobody works on: those abandoned by a dead owner first, then those queued, in that order."""
        now = self.now_in(connection)
        ready = and_(table.c.state == "QUEUED", or_(table.c.not_before.is_(None), table.c.not_before <= now))
        query = select(table).where(or_(ready, table.c.state == "RUNNING")).order_by(*order)
        rows = connection.execute(query).all()
        return sorted((row for row in rows if _is_free(row, now)), key=lambda row: row.state == "QUEUED")

    def renew(self, table: Table, key: Mapping[str, Any]) -> bool:
        """Extend the lease of a job; False if it is this process's no longer."""
        with self.database.writing(f"renew a lease in {table.name}") as connection:
            until = self.now_in(connection) + self._lease
            return bool(connection.execute(self._mine(table, key).values(lease_until=until)).rowcount)

    def requeue(self, table: Table, key: Mapping[str, Any], message: str, *, wait_seconds: float, counts: bool) -> bool:
        """Put a job back, to be taken again after a while; `counts`: the start counts as an attempt."""
        with self.database.writing(f"give back a row of {table.name}") as connection:
            values: dict[str, Any] = {"state": "QUEUED", "message": message, **_NOBODY}
            values["not_before"] = self.now_in(connection) + timedelta(seconds=wait_seconds)
            if not counts:
                values["attempts"] = table.c.attempts - 1
            return bool(connection.execute(self._mine(table, key).values(values)).rowcount)

    def end(self, table: Table, key: Mapping[str, Any], state: str, values: Mapping[str, Any]) -> bool:
        """Record the final state of a job; False if it is this process's no longer."""
        with self.database.writing(f"end a row of {table.name}") as connection:
            final = {**values, **_NOBODY, "state": state, "ended_at": self.now_in(connection)}
            return bool(connection.execute(self._mine(table, key).values(final)).rowcount)

    def _mine(self, table: Table, key: Mapping[str, Any]) -> Any:
        named = [table.c[name] == value for name, value in key.items()]
        return update(table).where(*named, table.c.state == "RUNNING", table.c.owner == self.owner)


_NOBODY: Mapping[str, Any] = {"owner": None, "owner_process": None, "lease_until": None}


def _is_free(row: Row[Any], now: datetime) -> bool:
    if row.state == "QUEUED":
        return True
    return not holds(row.owner_process or "", is_valid=row.lease_until > now)


def _key(table: Table, row: Row[Any]) -> ColumnElement[bool]:
    names: Sequence[str] = [column.name for column in table.primary_key]
    return and_(*(table.c[name] == getattr(row, name) for name in names))
