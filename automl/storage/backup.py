"""Copies of a whole database, verified before they count, and the way back.

SQLite is copied by its own backup interface, in one step, so a driver may go on writing meanwhile. PostgreSQL is copied
by pg_dump and restored by pg_restore, which must be installed; connection parameters reach them in a file, never in
arguments.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.engine import URL

from automl.errors import MissingExtraError, StorageError
from automl.storage import schema
from automl.storage.connect import WRITES, make_engine, storage_errors
from automl.storage.lease import held
from automl.storage.roles import SUBMITTING
from automl.storage.schema import DatabaseStatus
from automl.storage.sql import Database
from automl.storage.sqlite_file import copy_database, database_draft, folder_lock
from automl.storage.tables import Now, firings, submissions, sweeps
from automl.storage.url import is_sqlite, mask_url, parse_url, redact, sqlite_path

_PROGRAM_SECONDS = 24 * 3600
_SERVICE = "automl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A verified copy of a database. removed: older copies that were deleted for it."""

    path: Path
    bytes: int
    studies: int
    removed: tuple[Path, ...] = ()


def back_up(url: str, target: Path, *, keep: int | None = None) -> Backup:
    """Copy the database to a new file, or to a file named by the time in an existing folder, and verify the copy.

    keep: with a folder, delete all but that many of the newest copies in it that bear our name for them.
    Raises StorageError if the file exists, the copy fails or is damaged; MissingExtraError without pg_dump.
    """
    parsed = parse_url(url)
    status = schema.database_status(parsed)
    if not status.exists or not status.revision:
        raise StorageError(f"{status.url}: holds no tables of automl; there is nothing to back up")
    suffix = ".db" if is_sqlite(parsed) else ".dump"
    path = target / f"automl-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}{suffix}" if target.is_dir() else target
    with _disk_errors(path), folder_lock(path.parent), database_draft(path) as draft:
        if path.exists():
            raise StorageError(f"{path}: exists already; a backup does not overwrite anything")
        draft.touch(mode=0o600)
        if is_sqlite(parsed):
            copy_database(sqlite_path(parsed), draft)
            _verify_sqlite(draft)
        else:
            _dump(parsed, draft)
            _verify_dump(draft)
    removed = _prune(target, suffix, keep) if keep is not None and target.is_dir() else ()
    return Backup(path=path, bytes=path.stat().st_size, studies=status.studies, removed=removed)


def restore(source: Path, url: str, *, overwrite: bool = False) -> DatabaseStatus:
    """Put a verified backup in the place of a database and return the state of that.

    Refuses to replace a database that has tables unless `overwrite` is set, and one that is being driven always; an
    overwritten SQLite file is kept beside it as `….before-restore-…`. Raises StorageError and MissingExtraError.
    """
    parsed = parse_url(url)
    if not source.is_file():
        raise StorageError(f"{source}: no such file")
    if is_sqlite(parsed):
        _restore_sqlite(source, parsed, overwrite=overwrite)
    else:
        _restore_dump(source, parsed, overwrite=overwrite)
    return schema.database_status(parsed)


def _restore_sqlite(source: Path, url: URL, *, overwrite: bool) -> None:
    path = sqlite_path(url)
    _verify_sqlite(source)
    if not path.parent.is_dir():
        raise StorageError(f"{mask_url(url)}: folder {str(path.parent)!r} does not exist")
    with _disk_errors(path), folder_lock(path.parent), database_draft(path) as draft:
        if path.exists() and not overwrite:
            raise StorageError(f"{mask_url(url)}: exists already; add --overwrite to replace it")
        draft.touch(mode=0o600)
        copy_database(source, draft)
        _void_leases(url.set(database=str(draft)))
        if path.exists():
            _set_aside(url, path)


def _set_aside(url: URL, path: Path) -> None:
    """Keep a copy of the database that is replaced; a damaged one is kept byte for byte, its log too."""
    kept = path.with_name(f"{path.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    try:
        with _undriven(url), database_draft(kept) as draft:
            draft.touch(mode=0o600)
            copy_database(path, draft)
        _empty_log(path)
    except StorageError:
        if _is_readable(url):
            raise
        for suffix in ("", "-wal", "-journal"):
            if (part := path.with_name(path.name + suffix)).exists():
                shutil.copy2(part, kept.with_name(kept.name + suffix))


def _empty_log(path: Path) -> None:
    """Bring the log into the file, which is then whole without it, should this process be killed at the next step."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection,
    ):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _is_readable(url: URL) -> bool:
    try:
        return schema.database_status(url, thorough=True).exists
    except StorageError:
        return False


def _verify_sqlite(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise StorageError(f"{path}: is no SQLite database: {error}") from error
    if verdict != "ok":
        raise StorageError(f"{path}: is damaged: {' '.join(str(verdict).split())}")
    if not {"automl_sweeps", "trials"} <= tables:
        raise StorageError(f"{path}: holds no tables of automl")


def _dump(url: URL, draft: Path) -> None:
    with _service_file(url) as service:
        _call(
            url,
            service,
            "pg_dump",
            "--format=custom",
            "--no-owner",
            "--no-privileges",
            f"--file={draft}",
            f"--dbname=service={_SERVICE}",
        )


def _verify_dump(path: Path) -> None:
    """Read the archive to its end; a truncated one fails."""
    listed = _call(None, None, "pg_restore", "--list", str(path))
    missing = [name for name in ("automl_sweeps", "trials") if f" TABLE DATA public {name} " not in listed]
    if missing:
        raise StorageError(f"{path}: holds no table {missing[0]}")
    _call(None, None, "pg_restore", "--file=/dev/null", str(path))


def _restore_dump(source: Path, url: URL, *, overwrite: bool) -> None:
    _verify_dump(source)
    if schema.tables(url) and not overwrite:
        raise StorageError(f"{mask_url(url)}: has tables already; add --overwrite to replace them")
    replacing = ["--clean", "--if-exists"] if overwrite else []
    options = ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", *replacing]
    with _undriven(url), _service_file(url) as service:
        _call(url, service, "pg_restore", *options, f"--dbname=service={_SERVICE}", str(source))
    _void_leases(url)
    _let_the_web_submit(url)


@contextmanager
def _undriven(url: URL) -> Iterator[None]:
    """Nobody drives a study of this database, which will be replaced, nor begins to. Leaves no connection open."""
    if sweeps.name not in schema.tables(url):
        yield
        return
    with Database(url) as database, held(database, to_the_last=True):
        yield


def _let_the_web_submit(url: URL) -> None:
    """A right that the restored tables do not have from the owner's default privileges, as reading and writing."""
    engine = make_engine(url, pooled=False)
    with (
        storage_errors(url, "give automl_web its rights"),
        engine.connect().execution_options(**{WRITES: True}) as connection,
        connection.begin(),
    ):
        connection.exec_driver_sql(SUBMITTING)


def _void_leases(url: URL) -> None:
    """Whoever held a lease when the copy was made drives the original, if anything."""
    present = schema.tables(url)
    engine = make_engine(url, pooled=False)
    with (
        storage_errors(url, "free the leases"),
        engine.connect().execution_options(**{WRITES: True}) as connection,
        connection.begin(),
    ):
        for table in (sweeps, firings, submissions):
            if table.name in present:
                void = update(table).where(table.c.owner.is_not(None)).values(owner_process="", lease_until=Now())
                connection.execute(void)


@contextmanager
def _service_file(url: URL) -> Iterator[Path]:
    """Connection parameters, the password among them, in a file that only we can read."""
    _, parameters = url.get_dialect()().create_connect_args(url)
    lines = [f"[{_SERVICE}]", *(f"{key}={value}" for key, value in parameters.items())]
    with tempfile.TemporaryDirectory(prefix="automl-") as folder:
        path = Path(folder) / "service.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield path


def _call(url: URL | None, service: Path | None, program: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment |= {"PGSERVICEFILE": str(service)} if service else {}
    done = subprocess.run(  # noqa: S603 - PostgreSQL's own programs
        [_program(program), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PROGRAM_SECONDS,
    )
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        shown = redact(said, url) if url is not None else said
        raise StorageError(f"{program} failed: {' '.join(shown.split())}")
    return done.stdout


def _program(name: str) -> str:
    if found := shutil.which(name):
        return found
    config = shutil.which("pg_config")
    if config is not None:
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603
        path = Path(answer.stdout.strip()) / name
        if path.is_file():
            return str(path)
    raise MissingExtraError(f"{name} is not installed; it comes with PostgreSQL's client programs (postgresql-client)")


def _prune(folder: Path, suffix: str, keep: int) -> tuple[Path, ...]:
    copies = sorted(folder.glob(f"automl-[0-9]*T*Z{suffix}"))
    removed = tuple(copies[: max(0, len(copies) - max(1, keep))])
    for path in removed:
        path.unlink()
    return removed


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
