"""What a database holds, and how it is created and upgraded. Opening and inspecting never write.

A SQLite file is built beside its place and renamed into it, so it is there whole or not at all: a file of 0 bytes, or
one without tables, is never a database that a crash has left half made. Creation is serialised by a lock on the folder
(SQLite) or an advisory lock (PostgreSQL); simultaneous callers all succeed, and one of them does the work.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, column, func, inspect, select, table, text
from sqlalchemy.engine import URL

from automl.errors import StorageError
from automl.storage import migrations, views
from automl.storage.connect import WRITES, make_engine, storage_errors
from automl.storage.roles import SUBMITTING
from automl.storage.sqlite_file import database_draft, folder_lock, wait_for
from automl.storage.tables import metadata
from automl.storage.url import is_sqlite, mask_url, sqlite_path

_OPTUNA_TABLES = frozenset({"studies", "trials", "trial_values", "version_info", "alembic_version"})
_FIRST_TABLES = frozenset({"automl_sweeps", "automl_attempts", "automl_measurements", "automl_events"})
"""Tables that every revision of ours has had."""
_SMALL_BYTES = 32 << 20
"""Up to this size a SQLite file is looked at page by page whenever it is opened, in a tenth of a second."""
_ADVISORY_LOCK = 0x6175746F6D6C  # "automl"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """State of a database, read without changing it. `bytes` is None for PostgreSQL."""

    url: str
    exists: bool
    revision: str | None = None
    head: str = ""
    optuna_revision: str | None = None
    optuna_head: str = ""
    studies: int = 0
    bytes: int | None = None

    @property
    def ready(self) -> bool:
        """Whether a study can be opened in it as it is."""
        return self.exists and self.revision == self.head and self.optuna_revision == self.optuna_head

    @property
    def advice(self) -> str | None:
        """The command that makes it ready, or None if it is."""
        if self.ready:
            return None
        return "automl db upgrade" if self.revision and self.optuna_revision else "automl db init"


class _Schema(NamedTuple):
    tables: frozenset[str]
    revision: str | None
    optuna_revision: str | None

    @property
    def is_ours(self) -> bool:
        if self.revision is None:
            return False
        wanted = metadata.tables.keys() if self.revision == migrations.revisions()[0] else _FIRST_TABLES
        return self.tables >= set(wanted)

    @property
    def is_optunas(self) -> bool:
        return self.optuna_revision is not None and self.tables >= _OPTUNA_TABLES


def verify_database(url: URL, *, thorough: bool = False) -> None:
    """Raise StorageError, with a one-line hint, unless the database is whole and at this program's revision.

    thorough: every page of a SQLite file is looked at, however large it is.
    """
    schema = _read_schema(url, thorough=thorough)
    _refuse_foreign(url, schema)
    if not schema.is_ours or not schema.is_optunas:
        raise StorageError(f"{mask_url(url)}: has no tables of automl; create them with `automl db init`")
    known = migrations.revisions()
    if schema.revision not in known:
        message = (
            f"was written by a newer automl (revision {schema.revision}, this one knows {known[0]}); update automl"
        )
        raise StorageError(f"{mask_url(url)}: {message}")
    if schema.revision != known[0]:
        message = f"is at revision {schema.revision}, this automl needs {known[0]}; run `automl db upgrade`"
        raise StorageError(f"{mask_url(url)}: {message}")


def create_database(url: URL) -> None:
    """Create what is missing: the file, Optuna's tables, ours. Safe to call from any number of processes at once.

    Never changes a database of another program or version. Raises StorageError.
    """
    if _is_complete(url):
        return  # without the lock, which a stopped process may hold
    if is_sqlite(url):
        _create_file(url)
        return
    engine = make_engine(url, pooled=False)
    with storage_errors(url, "create tables"), engine.connect() as connection, _advisory_lock(connection, url):
        _fill(url)


def database_status(url: URL, *, thorough: bool = False) -> DatabaseStatus:
    """Describe the database without changing it. Raises StorageError if it is damaged or cannot be reached.

    thorough: as for `verify_database`.
    """
    head = migrations.revisions()[0]
    if is_sqlite(url) and not sqlite_path(url).exists():
        return DatabaseStatus(url=mask_url(url), exists=False, head=head)
    schema = _read_schema(url, thorough=thorough)
    return DatabaseStatus(
        url=mask_url(url),
        exists=True,
        revision=schema.revision if schema.is_ours else None,
        head=head,
        optuna_revision=schema.optuna_revision if schema.is_optunas else None,
        optuna_head=_optuna_head(url) if schema.is_optunas else "",
        studies=_count_studies(url) if schema.is_optunas else 0,
        bytes=sqlite_path(url).stat().st_size if is_sqlite(url) else None,
    )


def _is_complete(url: URL) -> bool:
    if is_sqlite(url) and not sqlite_path(url).exists():
        return False
    schema = _read_schema(url)
    return schema.is_ours and schema.is_optunas


def _read_schema(url: URL, *, thorough: bool = False) -> _Schema:
    if is_sqlite(url):
        _check_file(url)
        if thorough or sqlite_path(url).stat().st_size <= _SMALL_BYTES:
            check_pages(url)
    engine = make_engine(url, read_only=True, pooled=False)
    with storage_errors(url, "read the database"), engine.connect() as connection:
        tables = frozenset(inspect(connection).get_table_names())
        ours = migrations.revision(connection) if migrations.VERSION_TABLE in tables else None
        return _Schema(tables, ours, _optuna_revision(connection, tables))


def _optuna_revision(connection: Connection, tables: frozenset[str]) -> str | None:
    if not tables >= _OPTUNA_TABLES:
        return None
    return connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()


def _check_file(url: URL) -> None:
    path = sqlite_path(url)
    shown = mask_url(url)
    if not path.exists():
        raise StorageError(f"{shown}: no such database; create it with `automl db init`")
    if not path.is_file():
        raise StorageError(f"{shown}: is not a file")
    # Never open the file but by SQLite: closing any descriptor of it drops the locks that this process's connections
    # hold (POSIX), and another process may then delete the write-ahead log under them (sqlite.org/howtocorrupt, 2.2).
    if path.stat().st_size == 0:
        raise StorageError(f"{shown}: the file is empty (0 bytes), not a database; restore a backup or delete it")
    if not os.access(path, os.R_OK):
        raise StorageError(f"{shown}: cannot be read: {os.strerror(errno.EACCES)}")
    if not _is_sqlite_file(path):
        raise StorageError(f"{shown}: is not a SQLite database, or a damaged one")


def _is_sqlite_file(path: Path) -> bool:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as error:  # other errors are named by who reads the pages
            return error.sqlite_errorcode != sqlite3.SQLITE_NOTADB
    return True


def check_pages(url: URL) -> None:
    """Look at every page of a SQLite file, 0.4 s for 100 MB. Raises StorageError if one is damaged."""
    if not is_sqlite(url):
        return
    engine = make_engine(url, read_only=True, pooled=False)
    with storage_errors(url, "read the database (restore a backup if it is damaged)"), engine.connect() as connection:
        verdict = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
    if verdict != "ok":
        raise StorageError(f"{mask_url(url)}: the file is damaged ({' '.join(verdict.split())}); restore a backup")


def _refuse_foreign(url: URL, schema: _Schema) -> None:
    if schema.is_ours or schema.is_optunas or not schema.tables:
        return
    if migrations.VERSION_TABLE in schema.tables:
        return
    # A PostgreSQL database may be shared, as long as Optuna's version table is not taken by another program.
    if is_sqlite(url) or ("alembic_version" in schema.tables and "studies" not in schema.tables):
        names = ", ".join(sorted(schema.tables)[:4])
        raise StorageError(f"{mask_url(url)}: holds the tables of another program ({names}); use a database of its own")


def tables(url: URL) -> frozenset[str]:
    """Names of the tables, of whichever program. Raises StorageError if the database cannot be reached."""
    return _read_schema(url).tables


def _create_file(url: URL) -> None:
    path = sqlite_path(url)
    if not path.parent.is_dir():
        raise StorageError(f"{mask_url(url)}: folder {str(path.parent)!r} does not exist")
    try:
        with folder_lock(path.parent):
            if path.exists():
                _fill(url)
            else:
                _build_file(url)
    except OSError as error:
        raise StorageError(f"{mask_url(url)}: cannot create the database: {error.strerror}") from error


def _build_file(url: URL) -> None:
    with database_draft(sqlite_path(url)) as draft, storage_errors(url, "create the database"):
        _fill(url.set(database=str(draft)), new_file=True)


def _fill(url: URL, *, new_file: bool = False) -> None:
    """Create missing tables; the caller holds the lock."""
    from automl.storage.optuna_storage import create_tables

    if not new_file:
        schema = _read_schema(url)
        _refuse_foreign(url, schema)
        if schema.revision is not None and schema.is_optunas:
            return
    create_tables(url, new_file=new_file)
    migrate(url)


def migrate(url: URL) -> None:
    """Bring our own tables and views to this program's revision."""
    engine = make_engine(url, pooled=False)
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        migrations.upgrade(connection)
        views.create_views(connection)
        if not is_sqlite(url):
            connection.exec_driver_sql(SUBMITTING)


def _optuna_head(url: URL) -> str:
    from automl.storage.optuna_storage import head_revision

    with storage_errors(url, "read Optuna's tables"):
        return head_revision(url)


def _count_studies(url: URL) -> int:
    engine = make_engine(url, read_only=True, pooled=False)
    with storage_errors(url, "count the studies"), engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table("studies"))).scalar_one()


@contextmanager
def _advisory_lock(connection: Connection, url: URL) -> Iterator[None]:
    """Session lock: ends with the connection."""
    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
    key = {"key": _ADVISORY_LOCK}
    wait_for(lambda: bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar()), mask_url(url))
    try:
        yield
    finally:
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
