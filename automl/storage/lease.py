"""The lease on a study: at most one driver at a time writes to it.

The lease is a row of `automl_sweeps` with an owner and an expiry by the database's clock. It is taken by one
compare-and-set, renewed by a thread every third of its duration, and given back at the end. A second driver is refused
while the holder lives. A holder known to be dead (same machine, its process is gone) is replaced at once; one that
cannot be seen (another machine) is replaced when its lease expires without having been renewed.

A holder that cannot reach the database keeps on for the database's grace. Every write is checked against the lease, in
the same transaction, so if another driver has taken the study meanwhile nothing more is written and this one ends.

SQLite has no clock of its own: its time is that of the machine, which all drivers of a SQLite file share. A driver that
is stopped (SIGSTOP) inside a transaction keeps SQLite's write lock, and the study, until it is continued or killed.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from automl.errors import (
    InterruptedSearch,
    LeaseLostError,
    ResourceError,
    SpaceChangedError,
    StorageError,
    StudyBusyError,
)
from automl.storage.abandoned import close_abandoned
from automl.storage.connect import WRITES, make_engine, storage_errors
from automl.storage.process import is_alive, process_identity
from automl.storage.sql import Database
from automl.storage.tables import Now, events, sweeps

logger = logging.getLogger(__name__)

_STORAGE_EXIT_CODE = StorageError.exit_code
_AFTER_THE_DRIVER = 10.0


class StudyLease:
    """Exclusive right to write to one study. Use as a context manager and call `take` inside it.

    ttl_seconds: how long the lease outlives its last renewal. on_lost is called from the renewal thread, with a
    one-line message, when the lease is gone: taken over, or not renewable because the database is away for longer than
    ttl_seconds and its grace. The default logs the line and ends the process at once with exit code 3, since nothing
    more may be written.
    """

    def __init__(
        self,
        database: Database,
        study: str,
        ttl_seconds: float = 30.0,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.study = study
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._database = database
        self._ttl = ttl_seconds
        # The driver's own thread gives up first, and in better order.
        grace = database.patience.seconds
        self._patience = max(ttl_seconds, grace + _AFTER_THE_DRIVER) if grace else ttl_seconds
        self._on_lost = on_lost or _end_process
        # A connection of its own for each renewal: the driver's pool may be busy, its transactions long.
        self._engine = make_engine(database.address, pooled=False, busy_seconds=ttl_seconds / 3)
        self._renewed = -1.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StudyLease:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join(self._ttl)
        try:
            self._database.patience.call(self._release)
        except (StorageError, ResourceError, InterruptedSearch) as error:
            logger.warning("study %r: lease not given back, it expires in %.0f s: %s", self.study, self._ttl, error)

    def take(
        self, space_text: str, space_sha256: str, provenance: Mapping[str, Any], allow_space_change: bool = False
    ) -> int:
        """Take the lease, record the space and its provenance, and return the run's number, counted from 1.

        Attempts that a dead driver has left open are closed. Raises StudyBusyError naming host and process of the
        holder, SpaceChangedError if the study was started with another space and allow_space_change is not set.
        """
        request = _Request(space_text, space_sha256, provenance, allow_space_change)
        seen: _Holder | None = None
        while isinstance(outcome := self._try(request), _Holder):
            self._refuse_unless_silent(outcome, seen)
            if seen is None:
                message = (
                    "study %r: its driver %s cannot be seen from here; taking over in %.0f s unless it is heard of"
                )
                logger.warning(message, self.study, outcome.name, outcome.seconds_left)
            seen = outcome
            time.sleep(min(max(outcome.seconds_left, 0.01), 1.0, self._ttl / 10))
        self._thread = threading.Thread(target=self._keep, name=f"lease of {self.study}", daemon=True)
        self._thread.start()
        return outcome

    def verify(self, connection: Connection | None = None) -> None:
        """Raise LeaseLostError unless this driver still holds the lease, expired or not.

        Given the connection of a transaction, just before its commit, the answer holds until the commit: on PostgreSQL
        by a lock on the lease's row, on SQLite by the write lock. So a driver that was stopped for longer than its
        lease commits nothing after another has taken it. Raises StorageError if the database cannot be asked.
        """
        if connection is not None:
            self._verify(connection)
        else:
            with self._database.reading(f"verify the lease of study {self.study!r}") as reading:
                self._verify(reading)

    def _verify(self, connection: Connection) -> None:
        query = select(sweeps.c.owner).where(sweeps.c.study_name == self.study).with_for_update(read=True)
        owner = connection.execute(query).scalar()
        if owner != self.owner:
            raise LeaseLostError(self._lost_to(owner))

    def _lost_to(self, owner: str | None) -> str:
        taker = f"taken over by {_name(owner)}" if owner else "given back"
        return f"study {self.study!r}: the lease was {taker}; nothing more is written"

    def _try(self, request: _Request) -> int | _Holder:
        asked = _seconds()
        with self._database.writing(f"take the lease of study {self.study!r}") as connection:
            self._ensure_row(connection, request)
            row = connection.execute(
                select(sweeps, Now().label("now")).where(sweeps.c.study_name == self.study).with_for_update()
            ).one()
            if row.owner is not None and row.lease_until > row.now and is_alive(row.owner_process or "") is not False:
                left = (row.lease_until - row.now).total_seconds()
                return _Holder(row.owner, row.owner_process or "", row.lease_until, left)
            changed = row.space_sha256 != request.space_sha256
            if changed and row.runs > 0 and not request.allow_space_change:
                raise SpaceChangedError(_space_changed(self.study, row.space_sha256, request.space_sha256))
            self._become_owner(connection, request, row.owner, row.runs + 1)
            close_abandoned(connection, self.study)
            if changed:
                self._log(connection, "space_changed", {"from": row.space_sha256, "to": request.space_sha256})
            self._log(connection, "run_started", {"run": row.runs + 1, "owner": self.owner})
        self._renewed = asked
        return int(row.runs) + 1

    def _ensure_row(self, connection: Connection, request: _Request) -> None:
        statement = sqlite.insert(sweeps) if connection.dialect.name == "sqlite" else postgresql.insert(sweeps)
        row = {
            "study_name": self.study,
            "space_text": request.space_text,
            "space_sha256": request.space_sha256,
            "provenance": dict(request.provenance),
            "runs": 0,
            "created_at": Now(),
            "updated_at": Now(),
        }
        connection.execute(statement.values(row).on_conflict_do_nothing())

    def _become_owner(self, connection: Connection, request: _Request, previous: str | None, run: int) -> None:
        values = {
            "space_text": request.space_text,
            "space_sha256": request.space_sha256,
            "provenance": dict(request.provenance),
            "runs": run,
            "owner": self.owner,
            "owner_process": process_identity(),
            "lease_until": Now(self._ttl),
            "updated_at": Now(),
        }
        unchanged = sweeps.c.owner.is_(None) if previous is None else sweeps.c.owner == previous
        statement = update(sweeps).where(sweeps.c.study_name == self.study, unchanged).values(values)
        if connection.execute(statement).rowcount != 1:
            raise StudyBusyError(f"study {self.study!r} was taken by another driver at this moment")

    def _log(self, connection: Connection, kind: str, detail: Mapping[str, object]) -> None:
        row = {"study_name": self.study, "at": Now(), "kind": kind, "detail": dict(detail)}
        connection.execute(insert(events).values(row))

    def _refuse_unless_silent(self, holder: _Holder, seen: _Holder | None) -> None:
        """A holder may be waited for only if it cannot be seen, and has not renewed since it was first looked at."""
        renewed = seen is not None and (holder.owner, holder.until) != (seen.owner, seen.until)
        if is_alive(holder.process) or renewed or holder.seconds_left > self._ttl:
            raise StudyBusyError(f"study {self.study!r} is being driven by {holder.name}")

    def _keep(self) -> None:
        pause, failing = self._ttl / 3, False
        while not self._ended.wait(pause):
            try:
                self._renew()
                pause, failing = self._ttl / 3, False
            except LeaseLostError as error:
                self._lose(str(error))
                return
            except StorageError as error:
                left = self._renewed + self._patience - _seconds()
                if left <= 0:
                    self._lose(f"study {self.study!r}: lease not renewed for {self._patience:.0f} s: {error}")
                    return
                if not failing:
                    logger.warning("study %r: lease not renewed, %.0f s left: %s", self.study, left, error)
                pause, failing = min(1.0, self._ttl / 10), True

    def _renew(self) -> None:
        asked = _seconds()
        mine = (sweeps.c.study_name == self.study) & (sweeps.c.owner == self.owner)
        with (
            storage_errors(self._database.address, f"renew the lease of study {self.study!r}"),
            self._engine.connect().execution_options(**{WRITES: True}) as connection,
            connection.begin(),
        ):
            renewed = connection.execute(update(sweeps).where(mine).values(lease_until=Now(self._ttl))).rowcount
            query = select(sweeps.c.owner).where(sweeps.c.study_name == self.study)
            owner = None if renewed else connection.execute(query).scalar()
        if renewed != 1:
            raise LeaseLostError(self._lost_to(owner))
        self._renewed = asked

    def _lose(self, message: str) -> None:
        if not self._ended.is_set():
            self._on_lost(message)

    def _release(self) -> None:
        free = {"owner": None, "owner_process": None, "lease_until": None, "updated_at": Now()}
        mine = (sweeps.c.study_name == self.study) & (sweeps.c.owner == self.owner)
        with self._database.writing(f"give back the lease of study {self.study!r}") as connection:
            connection.execute(update(sweeps).where(mine).values(free))


class _Request(NamedTuple):
    space_text: str
    space_sha256: str
    provenance: Mapping[str, Any]
    allow_space_change: bool


class _Holder(NamedTuple):
    owner: str
    process: str
    until: datetime
    seconds_left: float

    @property
    def name(self) -> str:
        return _name(self.owner)


def _name(owner: str) -> str:
    host, pid, _ = owner.rsplit(":", 2)
    return f"process {pid} on {host}"


def _space_changed(study: str, old: str, new: str) -> str:
    return (
        f"study {study!r} was started with another space file ({old[:8]}, this one is {new[:8]}); "
        "give the study a new name, or continue it with --allow-space-change"
    )


def _seconds() -> float:
    """Seconds on a clock that never jumps and, where the system has one, also counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _end_process(message: str) -> None:
    logger.critical("%s", message)
    os._exit(_STORAGE_EXIT_CODE)
