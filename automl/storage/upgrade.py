"""Bringing an older database to this program's revisions, while nobody drives any of its studies."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.engine import URL

from automl.errors import StorageError
from automl.storage import migrations, schema, views
from automl.storage.connect import WRITES, make_engine, storage_errors
from automl.storage.lease import held
from automl.storage.schema import DatabaseStatus
from automl.storage.sql import Database
from automl.storage.sqlite_file import copy_database, database_draft, folder_lock
from automl.storage.url import is_sqlite, parse_url, sqlite_path


class Upgrade(NamedTuple):
    """What an upgrade did: the state before and after, and the copy made of a SQLite file before."""

    before: DatabaseStatus
    after: DatabaseStatus
    backup: Path | None


def upgrade_database(url: str) -> Upgrade:
    """Bring Optuna's tables and ours to this program's revisions; a SQLite file is copied first.

    Raises StorageError, also while a study of the database is being driven.
    """
    parsed = parse_url(url)
    before = schema.database_status(parsed, thorough=True)
    if before.ready:
        return Upgrade(before, before, None)
    if not before.revision or not before.optuna_revision:
        raise StorageError(f"{before.url}: has no tables of automl; create them with `automl db init`")
    _refuse_newer(before)
    with Database(parsed) as database, held(database):
        backup = _backup(sqlite_path(parsed)) if is_sqlite(parsed) else None
        _upgrade(parsed)
    return Upgrade(before, schema.database_status(parsed), backup)


def _refuse_newer(status: DatabaseStatus) -> None:
    if status.revision not in migrations.revisions():
        message = f"was written by a newer automl (revision {status.revision}, this one knows {status.head})"
        raise StorageError(f"{status.url}: {message}; update automl")


def _upgrade(url: URL) -> None:
    from automl.storage.optuna_storage import upgrade_tables

    with storage_errors(url, "upgrade the tables"):
        engine = make_engine(url, pooled=False)
        with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
            views.drop_views(connection)
        upgrade_tables(url)
        schema.migrate(url)


def _backup(path: Path) -> Path:
    """Copy the database, its write-ahead log included, to a file beside it."""
    copy = path.with_name(f"{path.name}.backup-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    try:
        if shutil.disk_usage(path.parent).free < 2 * path.stat().st_size:
            raise StorageError(f"{path}: not enough disk space for the copy made before an upgrade")
        with folder_lock(path.parent), database_draft(copy) as draft:
            copy_database(path, draft)
    except OSError as error:
        raise StorageError(f"{path}: cannot be copied before the upgrade: {error}") from error
    return copy
