"""Waiting for a database that is away: what counts as away, for how long a driver waits, and what ends the waiting.

A driver repeats the transaction that failed, so a transaction must be repeatable: either it was rolled back, or it was
committed without the answer arriving (docs/adr/0009-database-outage.md). Workers need no database: they train up to
their next measurement, which lies in a slot file on disk before the driver is told of it, and wait for the answer.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from automl.errors import InterruptedSearch, ResourceError, StorageError
from automl.storage.url import mask_url, redact

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
_NAP = 0.1
_AWAY_ON_SQLITE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
# Classes of SQLSTATE: connection, transaction rolled back (deadlock), resources, lock and statement time-outs,
# shutdown and start-up, input/output.
_AWAY_ON_POSTGRES = ("08", "40", "53", "55", "57", "58")


class Retry:
    """Repeats work while the database is away, for at most `seconds` in one outage; 0 does not repeat.

    Used by the driver's thread alone, but for `interrupt`, which may be called from a signal handler.
    """

    def __init__(
        self,
        address: URL,
        seconds: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds
        self._address = address
        self._clock = clock
        self._sleep = sleep
        self._interrupted: str | None = None
        self._away_since: float | None = None

    def interrupt(self, reason: str) -> None:
        """Wait no longer, now and later: what fails from now on raises InterruptedSearch."""
        self._interrupted = reason

    def call(self, work: Callable[[], T], before_repeating: Callable[[], None] = lambda: None) -> T:
        """Do the work, again and again while the database is away. Its other errors pass through.

        Raises StorageError when the database has been away for too long (ResourceError when its disk was full),
        InterruptedSearch when interrupted meanwhile.
        """
        if not self.seconds:
            return work()
        pause = _FIRST_PAUSE
        while True:
            self._check_interruption()
            try:
                done = work()
            except Exception as error:
                if not is_away(error):
                    raise
                self._failed(error)
            else:
                self._succeeded()
                return done
            self._wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            before_repeating()

    def _failed(self, error: Exception) -> None:
        shown = self._described(error)
        if self._away_since is None:
            self._away_since = self._clock()
            logger.warning("%s: the database is away, waiting up to %.0f s for it: %s", *self._place(), shown)
        away = self._clock() - self._away_since
        if away >= self.seconds:
            hint = "nothing is lost, the same command continues"
            kind = ResourceError if any(map(_is_full, _database_errors(error))) else StorageError
            raise kind(f"{mask_url(self._address)}: away for {away:.0f} s: {shown}; {hint}") from error

    def _succeeded(self) -> None:
        if self._away_since is not None:
            away = self._clock() - self._away_since
            self._away_since = None
            logger.warning("%s: the database is back after %.1f s", mask_url(self._address), away)

    def _wait(self, seconds: float) -> None:
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            self._check_interruption()
            self._sleep(min(left, _NAP))

    def _check_interruption(self) -> None:
        if self._interrupted is not None and self._away_since is not None:
            raise InterruptedSearch(
                f"stopped ({self._interrupted}) while the database was away; nothing is lost,"
                " the same command continues"
            )

    def _place(self) -> tuple[str, float]:
        return mask_url(self._address), self.seconds

    def _described(self, error: BaseException) -> str:
        cause = next(_database_errors(error), error)
        return " ".join(redact(str(getattr(cause, "orig", None) or cause), self._address).split())


def is_away(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the database could not do its work at this moment."""
    lost = any(isinstance(cause, PendingRollbackError) for cause in _causes(error))  # in the midst of a transaction
    return lost or any(_is_away(cause) for cause in _database_errors(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _database_errors(error: BaseException) -> Iterator[DBAPIError]:
    return (cause for cause in _causes(error) if isinstance(cause, DBAPIError))


def _is_full(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or getattr(error.orig, "sqlstate", None) == "53100"


def _is_away(error: DBAPIError) -> bool:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", 0) & 0xFF in _AWAY_ON_SQLITE
    state = getattr(original, "sqlstate", None)
    if state is None:  # psycopg's own: cannot connect, connection lost, no answer
        return error.connection_invalidated or type(original).__name__ in ("OperationalError", "ConnectionTimeout")
    return error.connection_invalidated or str(state).startswith(_AWAY_ON_POSTGRES)
