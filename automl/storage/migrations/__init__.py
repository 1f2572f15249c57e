"""Alembic revisions of our tables, shipped inside the package; they never touch Optuna's tables.

Revisions are hand-written files in `versions/`. Views are not part of a revision: `automl.storage.views` creates them
anew after every upgrade, so that neither Optuna's migrations nor ours meet a view that depends on a changing column.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, select, table

VERSION_TABLE = "automl_alembic_version"  # Optuna stamps alembic's default table, `alembic_version`
PREFIX = "automl_"


def upgrade(connection: Connection) -> None:
    """Bring our tables to the newest revision, inside the caller's transaction."""
    command.upgrade(_config(connection), "head")


def revision(connection: Connection) -> str | None:
    """The revision the database is at; the version table must exist. None if it is empty."""
    return connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar()


def revisions() -> list[str]:
    """All revisions this program knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def is_ours(name: str | None, kind: str, _parents: object = None) -> bool:
    """Alembic's `include_name`: ours only, out of all tables in the database."""
    return kind != "table" or (name is not None and name.startswith(PREFIX))


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "automl.storage:migrations")
    config.attributes["connection"] = connection
    return config
