"""The lease on a study: at most one driver at a time writes to it.

The lease is a row of `automl_sweeps` with an owner and an expiry by the database's clock. It is taken by one
compare-and-set, renewed by a thread every third of its duration, and given back at the end. A second driver is refused
while the holder lives. A holder known to be dead (same machine, its process is gone) is replaced at once; one that
cannot be seen (another machine) is replaced when its lease expires without having been renewed.

A holder that cannot reach the database keeps on for the database's grace. Every write is checked against the lease, in
the same transaction, so if another driver has taken the study meanwhile nothing more is written and this one ends.

A study is driven while somebody holds its lease (`drivers`): while the holder's process lives, or where that cannot be
seen, until the lease expires. Whoever deletes or changes a study takes its lease first (`held`), so that nobody begins
to drive it meanwhile (docs/adr/0013-driven.md).

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, insert, select, true, update
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
from automl.storage.connect import WRITES, Guard, make_engine, storage_errors
from automl.storage.process import is_alive, process_identity
from automl.storage.sql import Database
from automl.storage.tables import Now, events, sweeps

logger = logging.getLogger(__name__)

_AFTER_THE_DRIVER = 10.0
_SECONDS = 30.0


class Driver(NamedTuple):
    """The holder of a study's lease."""

    study: str
    owner: str

    @property
    def name(self) -> str:
        """`process 17 on host`."""
        return _name(self.owner)


def holds(process: str, *, is_valid: bool) -> bool:
    """Whether the taker of a lease still has it. process: its `process_identity`; is_valid: the lease has not expired.

    A process that lives has it even if it could not renew it: it waits for the database, and then goes on.
    """
    alive = is_alive(process)
    return is_valid if alive is None else alive


def drivers(connection: Connection, study: str | None = None, *, lock: bool = False) -> list[Driver]:
    """Drivers of a study, or of all in the database. lock: nobody else takes a lease before the transaction ends."""
    query = select(sweeps.c.study_name, sweeps.c.owner, sweeps.c.owner_process, sweeps.c.lease_until > Now())
    query = query.where(_scope(study)).order_by(sweeps.c.study_name)
    rows = connection.execute(query.with_for_update() if lock else query.where(sweeps.c.owner.is_not(None)))
    return [
        Driver(name, owner)
        for name, owner, process, is_valid in rows.all()
        if owner is not None and holds(process or "", is_valid=bool(is_valid))
    ]


def refuse_driven(connection: Connection, study: str | None = None, *, lock: bool = False) -> None:
    """Raise StudyBusyError if the study, or any of the database, is being driven. lock: as for `drivers`."""
    for driver in drivers(connection, study, lock=lock):
        raise StudyBusyError(f"study {driver.study!r} is being driven by {driver.name}; stop it first")


@contextmanager
def held(database: Database, study: str | None = None, *, to_the_last: bool = False) -> Iterator[Guard]:
    """Hold the lease of a study, or of all there are, while it is deleted or changed; that begins no run.

    Yields the guard of the transactions that do so: it raises LeaseLostError if somebody else has taken the study. A
    study without a row is only looked after by the guard. to_the_last: the lease is left to expire, since what it is in
    will be replaced. Raises StudyBusyError if it is being driven.
    """
    tenure = _Tenure(database, study, _SECONDS, on_lost=logger.warning, is_run=False)
    with database.writing(f"take {tenure.what}") as connection:
        refuse_driven(connection, study, lock=True)
        statement = update(sweeps).where(_scope(study)).values(tenure.claim())
        tenure.taken(connection.execute(statement).rowcount)
    tenure.begin()
    try:
        yield tenure.verify
    except BaseException:
        tenure.end()
        raise
    else:
        tenure.end(gives_back=not to_the_last)


class StudyLease:
    """Exclusive right to write to one study. Use as a context manager and call `take` inside it.

    ttl_seconds: how long the lease outlives its last renewal. on_lost is called from the renewal thread, with a
    one-line message, when the lease is gone: taken over, or not renewable because the database is away for longer than
    ttl_seconds and its grace. The default logs the line; whatever is written after that is refused (`verify`).
    """

    def __init__(
        self,
        database: Database,
        study: str,
        ttl_seconds: float = _SECONDS,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.study = study
        self._database = database
        self._ttl = ttl_seconds
        self._tenure = _Tenure(database, study, ttl_seconds, on_lost or logger.critical, is_run=True)
        self.owner = self._tenure.owner
        self._request: _Request | None = None
        self._run = 0

    def __enter__(self) -> StudyLease:
        return self

    def __exit__(self, *_: object) -> None:
        self._tenure.end()

    def take(
        self, space_text: str, space_sha256: str, provenance: Mapping[str, Any], allow_space_change: bool = False
    ) -> int:
        """`claim` and `accept` in one."""
        run = self.claim(space_text, space_sha256, provenance, allow_space_change)
        self.accept()
        return run

    def claim(
        self, space_text: str, space_sha256: str, provenance: Mapping[str, Any], allow_space_change: bool = False
    ) -> int:
        """Take the lease for a run and return the number it will have, counted from 1; nothing else is recorded yet.

        A run that is refused before `accept` so leaves the study as it was, and no study where there was none. Attempts
        that a dead driver has left open are closed. Raises StudyBusyError naming host and process of the holder,
        SpaceChangedError if the study was started with another space and allow_space_change is not set.
        """
        request = self._request = _Request(space_text, space_sha256, provenance, allow_space_change)
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
        self._tenure.begin()
        return outcome

    def accept(self, folder: str | None = None) -> None:
        """Record that the run has begun, by which space and from where, and the study's folder if it is given."""
        self._database.retry.call(lambda: self._accept(folder))

    def verify(self, connection: Connection | None = None) -> None:
        """Raise LeaseLostError unless this driver still holds the lease, expired or not.

        Given the connection of a transaction, just before its commit, the answer holds until the commit: on PostgreSQL
        by a lock on the lease's row, on SQLite by the write lock. So a driver that was stopped for longer than its
        lease commits nothing after another has taken it. Raises StorageError if the database cannot be asked.
        """
        self._tenure.verify(connection)

    def _try(self, request: _Request) -> int | _Holder:
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
            self._become_owner(connection, row.owner, identity=row.identity or secrets.token_hex(16))
            close_abandoned(connection, self.study)
        self._run = int(row.runs) + 1
        return self._run

    def _accept(self, folder: str | None) -> None:
        assert self._request is not None, "accepted before it was claimed"
        mine = sweeps.c.study_name == self.study
        with self._database.writing(f"begin run {self._run} of study {self.study!r}") as connection:
            self._tenure.verify(connection)
            before = connection.execute(select(sweeps.c.runs, sweeps.c.space_sha256).where(mine)).one()
            if before.runs == self._run:  # it is repeated: it was committed, but the answer was lost
                return
            where = {} if folder is None else {"folder": folder}
            connection.execute(update(sweeps).where(mine).values(**self._request.recorded(), runs=self._run, **where))
            if before.runs and before.space_sha256 != self._request.space_sha256:
                change = {"from": before.space_sha256, "to": self._request.space_sha256}
                self._log(connection, "space_changed", change)
            self._log(connection, "run_started", {"run": self._run, "owner": self.owner})

    def _ensure_row(self, connection: Connection, request: _Request) -> None:
        statement = sqlite.insert(sweeps) if connection.dialect.name == "sqlite" else postgresql.insert(sweeps)
        row = {
            "study_name": self.study,
            **request.recorded(),
            "runs": 0,
            "created_at": Now(),
            "updated_at": Now(),
        }
        connection.execute(statement.values(row).on_conflict_do_nothing())

    def _become_owner(self, connection: Connection, previous: str | None, *, identity: str) -> None:
        values = {
            "identity": identity,
            "updated_at": Now(),
            **self._tenure.claim(),
        }
        unchanged = sweeps.c.owner.is_(None) if previous is None else sweeps.c.owner == previous
        statement = update(sweeps).where(sweeps.c.study_name == self.study, unchanged).values(values)
        if connection.execute(statement).rowcount != 1:
            raise StudyBusyError(f"study {self.study!r} was taken by another driver at this moment")
        self._tenure.taken(1)

    def _log(self, connection: Connection, kind: str, detail: Mapping[str, object]) -> None:
        row = {"study_name": self.study, "at": Now(), "kind": kind, "detail": dict(detail)}
        connection.execute(insert(events).values(row))

    def _refuse_unless_silent(self, holder: _Holder, seen: _Holder | None) -> None:
        """A holder may be waited for only if it cannot be seen, and has not renewed since it was first looked at."""
        renewed = seen is not None and (holder.owner, holder.until) != (seen.owner, seen.until)
        if is_alive(holder.process) or renewed or holder.seconds_left > self._ttl:
            raise StudyBusyError(f"study {self.study!r} is being driven by {holder.name}")


class _Tenure:
    """The lease of one study, or of all, while one owner has it: renewed by a thread from `begin` to `end`."""

    def __init__(
        self,
        database: Database,
        study: str | None,
        ttl_seconds: float,
        on_lost: Callable[[str], None],
        *,
        is_run: bool,
    ) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._study = study
        self._database = database
        self._ttl = ttl_seconds
        self._is_run = is_run  # and therefore shown as what was last done with the study
        # The driver's own thread gives up first, and in better order.
        grace = database.retry.seconds
        self._patience = max(ttl_seconds, grace + _AFTER_THE_DRIVER) if grace else ttl_seconds
        self._on_lost = on_lost
        # A connection of its own for each renewal: the driver's pool may be busy, its transactions long.
        self._engine = make_engine(database.address, pooled=False, busy_seconds=ttl_seconds / 3)
        self._rows: int | None = None
        self._renewed = -1.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def what(self) -> str:
        """`the lease of study 'a'`."""
        return "the leases of all studies" if self._study is None else f"the lease of study {self._study!r}"

    @property
    def _prefix(self) -> str:
        return "" if self._study is None else f"study {self._study!r}: "

    def claim(self) -> dict[str, Any]:
        """Columns of a row that is made this owner's now."""
        self._renewed = _seconds()
        return {"owner": self.owner, "owner_process": process_identity(), "lease_until": Now(self._ttl)}

    def taken(self, rows: int) -> None:
        """Note that so many rows have been made its own, by a transaction that is about to be committed."""
        self._rows = rows

    def begin(self) -> None:
        """Renew from now on."""
        if self._rows:
            self._thread = threading.Thread(target=self._keep, name=self.what, daemon=True)
            self._thread.start()

    def end(self, *, gives_back: bool = True) -> None:
        """Renew no longer, and give back what has been taken; without a database it expires by itself."""
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join(self._ttl)
        try:
            if gives_back:
                self._database.retry.call(self._release)
        except (StorageError, ResourceError, InterruptedSearch) as error:
            logger.warning("%s was not given back, it expires in %.0f s: %s", self.what, self._ttl, error)

    def verify(self, connection: Connection | None = None) -> None:
        """See `StudyLease.verify`."""
        if connection is not None:
            self._verify(connection)
        else:
            with self._database.reading(f"verify {self.what}") as reading:
                self._verify(reading)

    def _verify(self, connection: Connection) -> None:
        query = select(sweeps.c.owner).where(_scope(self._study)).with_for_update(read=True)
        owners = set(connection.execute(query).scalars())
        expected = {None} if self._rows == 0 else {self.owner}  # there was no row to take, nor may somebody drive now
        if (not owners and self._rows != 0) or not owners <= expected:
            raise LeaseLostError(self._lost_to(next(iter(owners - expected), None)))

    def _lost_to(self, owner: str | None) -> str:
        taker = f"taken over by {_name(owner)}" if owner else "given back"
        return f"{self._prefix}the lease was {taker}; nothing more is written"

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
                    self._lose(f"{self._prefix}lease not renewed for {self._patience:.0f} s: {error}")
                    return
                if not failing:
                    logger.warning("%slease not renewed, %.0f s left: %s", self._prefix, left, error)
                pause, failing = min(1.0, self._ttl / 10), True

    def _renew(self) -> None:
        asked = _seconds()
        with (
            storage_errors(self._database.address, f"renew {self.what}"),
            self._engine.connect().execution_options(**{WRITES: True}) as connection,
            connection.begin(),
        ):
            renewed = connection.execute(update(sweeps).where(self._mine()).values(lease_until=Now(self._ttl))).rowcount
            query = select(sweeps.c.owner).where(_scope(self._study), ~self._mine())
            owner = None if renewed == self._rows else connection.execute(query).scalar()
        if renewed != self._rows:
            raise LeaseLostError(self._lost_to(owner))
        self._renewed = asked

    def _lose(self, message: str) -> None:
        if not self._ended.is_set():
            self._on_lost(message)

    def _release(self) -> None:
        free: dict[str, Any] = {"owner": None, "owner_process": None, "lease_until": None}
        if self._is_run:
            free["updated_at"] = Now()
        with self._database.writing(f"give back {self.what}") as connection:
            if self._is_run:  # a study whose first run was refused leaves no row
                connection.execute(delete(sweeps).where(self._mine(), sweeps.c.runs == 0))
            connection.execute(update(sweeps).where(self._mine()).values(free))

    def _mine(self) -> ColumnElement[bool]:
        return _scope(self._study) & (sweeps.c.owner == self.owner)


def _scope(study: str | None) -> ColumnElement[bool]:
    return true() if study is None else sweeps.c.study_name == study


class _Request(NamedTuple):
    space_text: str
    space_sha256: str
    provenance: Mapping[str, Any]
    allow_space_change: bool

    def recorded(self) -> dict[str, Any]:
        """What is kept of it, by column."""
        named = {"space_text": self.space_text, "space_sha256": self.space_sha256}
        return {**named, "provenance": dict(self.provenance)}


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
    return f"study {study!r} was started with another space file ({old[:8]}, this one is {new[:8]})"


def _seconds() -> float:
    """Seconds on a clock that never jumps and, where the system has one, also counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
