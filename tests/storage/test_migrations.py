"""Alembic brings a database to exactly the tables of `tables.py`, and leaves Optuna's alone."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from automl.errors import StorageError
from automl.storage import migrations, views
from automl.storage.connect import make_engine
from automl.storage.lease import StudyLease
from automl.storage.overview import study_totals
from automl.storage.sql import Database, database_status, open_database
from automl.storage.submissions import list_submissions, submit
from automl.storage.tables import metadata
from automl.storage.upgrade import upgrade_database
from automl.storage.url import parse_url
from automl.storage.verification import VerificationStore
from automl.storage.views import VIEWS


def test_migrated_tables_are_those_of_the_metadata(database: Database) -> None:
    with database.reading("compare") as connection:
        options = {
            "version_table": migrations.VERSION_TABLE,
            "include_name": migrations.is_ours,
            "compare_server_default": True,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


# Alembic's comparison does not see CHECK constraints; SQLite keeps the text of every table.
def test_migrated_constraints_are_those_of_the_metadata(sqlite_url: str, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/plain.db")
    metadata.create_all(engine)
    engine.dispose()
    assert _definitions(Path(sqlite_url.removeprefix("sqlite:///"))) == _definitions(tmp_path / "plain.db")


# Without the filter, autogenerate would propose to drop all of Optuna's tables.
def test_only_our_tables_are_seen(database: Database) -> None:
    with database.reading("list tables") as connection:
        names = inspect(connection).get_table_names()
    ours = {name for name in names if migrations.is_ours(name, "table")}
    assert ours == {*metadata.tables, migrations.VERSION_TABLE}
    assert {"trials", "studies", "alembic_version"} <= set(names) - ours


def test_views_change_with_a_revision() -> None:
    params = "".join(views._PARAMS[name] for name in ("sqlite", "postgresql"))
    statements = (views._leaderboard(""), views._CURVES, views._SPENT, views._COSTS, params)
    digest = hashlib.sha256("".join(statements).encode()).hexdigest()[:12]
    # A database at the newest revision keeps the views it has, so a view that changes needs a revision after this one.
    assert (digest, "0009" in migrations.revisions()) == ("fa339449f1a9", True)


def test_downgrade_leaves_only_optunas_tables(url: str) -> None:
    engine = make_engine(parse_url(url), pooled=False)
    with engine.connect() as connection, connection.begin():
        for view in VIEWS:
            connection.execute(text(f"DROP VIEW {view}"))
        command.downgrade(migrations._config(connection), "base")
    with engine.connect() as connection:
        left = {name for name in inspect(connection).get_table_names() if name.startswith(migrations.PREFIX)}
    assert left == {migrations.VERSION_TABLE}
    with pytest.raises(StorageError, match="create them with `automl db init`"):
        open_database(url, create=False)
    with open_database(url, create=True) as database:
        assert database.status().ready


class TestUpgrade:
    def test_a_current_database_is_left_alone(self, url: str) -> None:
        done = upgrade_database(url)
        assert done.before == done.after
        assert done.backup is None

    def test_optunas_older_tables_are_upgraded_with_ours(self, url: str) -> None:
        make_older(url)
        before = database_status(url)
        assert (before.ready, before.advice) == (False, "automl db upgrade")
        with open_database(url, create=False) as database, pytest.raises(StorageError, match="run `automl db upgrade`"):
            database.optuna_storage()
        done = upgrade_database(url)
        assert done.before == before
        assert done.after.ready
        with open_database(url, create=False) as database, database.reading("look at the views") as connection:
            assert set(inspect(connection).get_view_names()) == set(VIEWS)
            assert "trials_study_id_key" in {index["name"] for index in inspect(connection).get_indexes("trials")}

    def test_our_first_revision_is_upgraded_with_what_it_holds(self, url: str) -> None:
        with open_database(url, create=False) as database:
            database.store("s").add_event("kept", {"number": 3})
        _make_first(url)
        before = database_status(url)
        assert (before.revision, before.advice) == ("0001", "automl db upgrade")
        for create in (False, True):
            with (
                pytest.raises(StorageError, match=r"is at revision 0001, .* run `automl db upgrade`"),
                open_database(url, create=create) as database,
            ):
                database.optuna_storage()
        assert upgrade_database(url).after.ready
        with open_database(url, create=False) as database:
            assert [(kind, detail) for _, kind, detail in database.store("s").events()] == [("kept", {"number": 3})]

    def test_views_of_an_older_version_are_made_anew(self, tmp_path: Path) -> None:
        """In a database that 870b605 wrote, whose leaderboard ranks by another rule."""
        path = tmp_path / "older.sqlite"
        shutil.copy(Path(__file__).parents[1] / "recorded/begun-870b605/study.sqlite", path)
        before = _views(path)
        assert upgrade_database(f"sqlite:///{path}").after.ready
        with open_database(f"sqlite:///{tmp_path}/new.sqlite", create=True):
            assert _views(path) == _views(tmp_path / "new.sqlite") != before

    # What was finished stays finished, also after a verification, which took the lease as a run does.
    def test_runs_are_made_of_what_older_versions_recorded(self, url: str) -> None:
        space = "version: 1\nstudy: {}\nmodel: ./m\ntask: {{type: classification, data: ./d.jsonl}}\n"
        space += "search: {{trials: 7}}\n"
        with open_database(url, create=False) as database:
            for study, ends in (("done", True), ("begun", False), ("unreadable", True)):
                with StudyLease(database, study) as lease:
                    lease.take("version: 0\n" if study == "unreadable" else space.format(study), "a" * 64, {})
                if ends:
                    database.store(study).add_event("finished", {"run": 1})
            with StudyLease(database, "done") as lease:
                lease.take(space.format("done"), "a" * 64, {})
                VerificationStore(database, "done").begin(1, {})
            first = submit(database, "asked", "version: 1", "somebody", most=100)
        _downgrade(url, "0003")
        with make_engine(parse_url(url), pooled=False).connect() as connection, connection.begin():
            again = (
                "INSERT INTO automl_submissions SELECT :id, study_name, space_text, submitted_at, submitted_by, state,"
            )
            rest = " attempts, owner, owner_process, lease_until, not_before, started_at, ended_at, exit_code, message"
            connection.execute(text(again + rest + " FROM automl_submissions"), {"id": "f" * 32})
        assert upgrade_database(url).after.ready
        with open_database(url, create=False) as database:
            found = {each.study: each for each in study_totals(database, ["done", "begun", "unreadable"])}
            assert {name: (each.state, each.planned) for name, each in found.items()} == {
                "done": ("finished", 7),
                "begun": ("stopped", 7),
                "unreadable": ("finished", 0),
            }
            assert {each.id: str(each.state) for each in list_submissions(database)} == {
                first.id: "QUEUED",
                "f" * 32: "CANCELLED",
            }

    def test_a_sqlite_file_is_copied_before(self, sqlite_url: str) -> None:
        with open_database(sqlite_url, create=False) as database:
            database.store("s").add_event("kept", {})
            make_older(sqlite_url)
        backup = upgrade_database(sqlite_url).backup
        assert backup is not None
        with closing(sqlite3.connect(backup)) as copy:
            assert copy.execute("SELECT kind FROM automl_events").fetchall() == [("kept",)]
            assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("v3.0.0.d",)]

    def test_a_database_in_use_is_not_upgraded(self, url: str) -> None:
        with open_database(url, create=False) as database, StudyLease(database, "nightly") as lease:
            lease.take("space", "a" * 64, {})
            make_older(url)
            with pytest.raises(StorageError, match=r"study 'nightly' is being driven by .*; stop it first"):
                upgrade_database(url)
        assert upgrade_database(url).after.ready

    def test_a_database_without_tables_has_nothing_to_upgrade(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="automl db init"):
            upgrade_database(f"sqlite:///{tmp_path}/automl.db")


def make_older(url: str) -> None:
    """Bring Optuna's tables back to the revision before its newest, which added an index."""
    engine = make_engine(parse_url(url), pooled=False)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("DROP INDEX ix_trials_study_id"))
        connection.execute(text("UPDATE alembic_version SET version_num = 'v3.0.0.d'"))


def _make_first(url: str) -> None:
    _downgrade(url, "0001")


def _downgrade(url: str, revision: str) -> None:
    """Bring our tables back to an earlier revision."""
    engine = make_engine(parse_url(url), pooled=False)
    with engine.connect() as connection, connection.begin():
        for view in VIEWS:
            connection.execute(text(f"DROP VIEW {view}"))
        command.downgrade(migrations._config(connection), revision)


def _views(path: Path) -> dict[str, str]:
    """View -> its statement."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'"))


def _definitions(path: Path) -> dict[str, set[str]]:
    """Table -> its columns and constraints, each in one spelling."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name LIKE 'automl_%' AND type = 'table'")
        tables = {name: sql for name, sql in rows if name in metadata.tables}
    return {name: set(_parts(sql)) for name, sql in tables.items()}


def _parts(statement: str) -> Iterator[str]:
    """The definitions between the outer parentheses; an added column stands on the line of the one before it."""
    depth, part = 0, ""
    for letter in re.sub(r"\s+", " ", statement[statement.index("(") + 1 : statement.rindex(")")]):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()
