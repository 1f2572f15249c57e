"""Connections: the settings every connection to the database gets, ours and Optuna's alike.

SQLite: write-ahead log, `synchronous=FULL` (an acknowledged result survives power loss), 30 s busy time-out, foreign
keys on; a file is opened, never created by accident. PostgreSQL: psycopg 3 with connect, statement, lock and idle
time-outs, one of our own for a server that does not answer at all, and a small pool that tests a connection before it
lends it.

Connections are made by a callable instead of by SQLAlchemy's URL, so no engine (and nothing that pickles one) carries
a password, and no connection can exist that missed the settings.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from automl.errors import MissingExtraError, StorageError
from automl.storage.url import is_sqlite, mask_url, redact, sqlite_path

Guard = Callable[[Connection], None]
"""Called in a transaction that has written, last before its commit; raises LeaseLostError to prevent it."""

WRITES = "automl_writes"  # execution option: the transaction takes SQLite's write lock when it begins

_BUSY_SECONDS = 30.0
_SILENCE_SECONDS = 20.0
"""Longest wait for any answer; longer than statement_timeout, which a server that is stopped or cut off cannot keep."""
_POSTGRES_OPTIONS = "-c statement_timeout=15000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=60000"
_POSTGRES_PARAMETERS: Mapping[str, object] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "application_name": "automl",
}


@dataclass(frozen=True, slots=True)
class SqliteConnect:
    """Opens connections to one SQLite file. Picklable: a file name is no secret.

    mode: `rwc` may create the file, `rw` and `ro` never do. manual: the caller begins transactions itself (Python's
    sqlite3 module begins none); otherwise the module begins one before each first write, which Optuna relies on.
    """

    path: str
    mode: str = "rw"
    manual: bool = False
    busy_seconds: float = _BUSY_SECONDS

    def __call__(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{Path(self.path).as_uri()}?mode={self.mode}",
            uri=True,
            timeout=self.busy_seconds,
            check_same_thread=False,
            isolation_level=None if self.manual else "DEFERRED",
        )
        try:
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        if self.mode != "ro":
            (journal,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if journal != "wal":
                raise sqlite3.OperationalError(f"no write-ahead log on this file system (journal mode {journal})")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")


class PostgresConnect:
    """Opens connections to one PostgreSQL database. Refuses to be pickled, since it holds the password."""

    def __init__(self, url: URL, *, read_only: bool) -> None:
        try:
            from automl.storage.postgres import TimedConnection
        except ImportError as error:
            raise MissingExtraError("PostgreSQL needs psycopg 3: pip install 'automl-lora[postgres]'") from error
        _, given = url.get_dialect()().create_connect_args(url)
        options = _POSTGRES_OPTIONS + (" -c default_transaction_read_only=on" if read_only else "")
        self._parameters: dict[str, Any] = {**_POSTGRES_PARAMETERS, "options": options, **given}
        self._connect: Callable[..., Any] = TimedConnection.connect

    def __call__(self) -> Any:
        connection = self._connect(**self._parameters)
        connection.silence_seconds = _SILENCE_SECONDS
        return connection

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PostgreSQL connection is not pickled: it holds credentials, and only the driver writes")


def engine_arguments(url: URL, *, read_only: bool = False, create: bool = False) -> dict[str, Any]:
    """Keyword arguments of `create_engine` for an engine whose transactions SQLAlchemy or Optuna begins."""
    if is_sqlite(url):
        mode = "ro" if read_only else "rwc" if create else "rw"
        return {"creator": SqliteConnect(str(sqlite_path(url)), mode=mode), "hide_parameters": True}
    return {
        "creator": PostgresConnect(url, read_only=read_only),
        "pool_size": 2,
        "max_overflow": 4,
        "pool_pre_ping": True,
        "hide_parameters": True,
    }


def public_url(url: URL) -> URL:
    """The URL an engine is told: the file for SQLite, the bare dialect for PostgreSQL (see the module's docstring)."""
    return url if is_sqlite(url) else URL.create(url.drivername)


def make_engine(url: URL, *, read_only: bool = False, pooled: bool = True, busy_seconds: float | None = None) -> Engine:
    """Our own engine. JSON is written without NaN; on SQLite a writing transaction takes the write lock at its start.

    pooled=False opens a connection for each use and closes it after. busy_seconds: longest wait for SQLite's lock.
    """
    arguments = engine_arguments(url, read_only=read_only)
    if not pooled:
        arguments = {key: arguments[key] for key in ("creator", "hide_parameters")} | {"poolclass": NullPool}
    if is_sqlite(url):
        mode = "ro" if read_only else "rw"
        seconds = _BUSY_SECONDS if busy_seconds is None else busy_seconds
        arguments["creator"] = SqliteConnect(str(sqlite_path(url)), mode=mode, manual=True, busy_seconds=seconds)
    engine = create_engine(public_url(url), json_serializer=partial(json.dumps, allow_nan=False), **arguments)
    if is_sqlite(url):
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def storage_errors(url: URL, doing: str) -> Iterator[None]:
    """Turn what database drivers raise into StorageError: one line, no SQL, no parameters, no secrets."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        text = " ".join(redact(str(cause), url).split())
        hint = "; restore a backup" if _is_damage(cause) else ""
        raise StorageError(f"{mask_url(url)}: cannot {doing}: {text}{hint}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StorageError(f"{mask_url(url)}: cannot {doing}: the database holds damaged text: {error}") from error


def _is_damage(cause: BaseException) -> bool:
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads before it writes fails at once, without waiting for the lock, if another
    # process has written in between (SQLITE_BUSY_SNAPSHOT).
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
