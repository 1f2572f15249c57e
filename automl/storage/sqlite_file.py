"""A SQLite database as files: copied in one step, and put in its place with no log of another database beside it.

SQLite replays the `-wal` or `-journal` that it finds beside a file, whichever database left it there: a file made
beside the log of one that was deleted gets that one's pages (sqlite.org/howtocorrupt.html, 1.4). So everything that
becomes a database (created, restored, backed up, copied before an upgrade) comes to its place through `database_draft`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from automl.durable import sync
from automl.errors import StorageError

logger = logging.getLogger(__name__)

LOCK_SECONDS = 120.0
_LOGS = ("-wal", "-journal", "-shm")
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Exclusive lock on the folder itself: leaves no file behind, and ends with the process that holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        wait_for(lambda: try_flock(descriptor), str(folder))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def database_draft(path: Path) -> Iterator[Path]:
    """The name of a file to write, gone if it was there; on leaving the block it becomes `path`, synced and alone.

    The caller holds the folder's lock. If the block raises, nothing has changed.
    """
    draft = path.with_name(f".{path.name}.new")
    _remove_with_logs(draft)  # of a writer that was killed
    try:
        yield draft
        place_database(draft, path)
    finally:
        _remove_with_logs(draft)


def place_database(draft: Path, path: Path) -> None:
    """Rename a whole database into its place. What lies there as a log is kept under a name SQLite does not look for.

    The caller holds the folder's lock, and nobody writes to the database that is replaced, if there is one.
    """
    sync(draft)
    for log in _beside(path):
        if log.name.endswith("-shm") or not log.stat().st_size:  # an index, or nothing
            log.unlink()
        else:
            kept = log.with_name(f"{log.name}.left-{datetime.now(UTC):%Y%m%dT%H%M%S}")
            log.rename(kept)
            logger.warning("%s: left by another database of that name; kept as %s", log, kept.name)
    draft.replace(path)
    sync(path.parent)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database, its log included, to one file without a log. Others may write to it meanwhile.

    In one step: a copy made in several begins anew whenever somebody commits between two of them, and so never ends
    beside a driver. One read transaction holds up no writer. Raises StorageError.
    """
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new, progress=_refuse_lock)
            new.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise StorageError(f"{source}: cannot be copied: {error}") from error


def try_flock(descriptor: int) -> bool:
    """Whether the exclusive lock on an open file or folder was to be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(take: Callable[[], bool], what: str) -> None:
    """Ask until a lock is taken. Raises StorageError if somebody else has had it for too long."""
    deadline = time.monotonic() + LOCK_SECONDS
    while not take():
        if time.monotonic() > deadline:
            raise StorageError(f"{what}: another process has been writing a database there for {LOCK_SECONDS:.0f} s")
        time.sleep(0.05)


def _refuse_lock(status: int, _remaining: int, _total: int) -> None:
    if status in _BUSY:  # sqlite3 would ask again without end
        raise sqlite3.OperationalError("database is locked")


def _remove_with_logs(path: Path) -> None:
    for file in (path, *_beside(path)):
        file.unlink(missing_ok=True)


def _beside(path: Path) -> list[Path]:
    return [log for suffix in _LOGS if (log := path.with_name(path.name + suffix)).exists()]
