"""Each role can do its work and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from automl.errors import StorageError, SubmissionRefused
from automl.storage.backup import back_up, restore
from automl.storage.invariants import check
from automl.storage.roles import OWNER, READER, ROLES, WEB, WRITER, apply_roles, role_statements
from automl.storage.sql import open_database
from automl.storage.submissions import cancel, list_submissions, submit
from automl.storage.tables import metadata
from tests.databases import fresh_postgres
from tests.storage.sweeps import STUDY, finished_sweep

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
pytestmark = pytest.mark.postgres

PASSWORDS = {OWNER: "own'er", WRITER: "wri%ter", WEB: "we;b", READER: "rea der"}


def url_as(role: str, address: str) -> str:
    url = make_url(address).set(username=role, password=PASSWORDS[role])
    return url.render_as_string(hide_password=False)


def psycopg_parameters(url: str) -> dict[str, Any]:
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    return parameters


@pytest.fixture(params=[False, True], ids=["made before the tables", "made after the tables"])
def address(request: pytest.FixtureRequest) -> str:
    """A database with the roles, whose tables the owner has created or taken over."""
    address = fresh_postgres(tables=request.param)
    assert apply_roles(address, PASSWORDS) == list(ROLES)
    apply_roles(address, {})
    open_database(url_as(OWNER, address), create=True).close()
    return address


def test_the_writer_runs_a_sweep_and_changes_no_table(address: str, tmp_path: Path) -> None:
    with open_database(url_as(WRITER, address), create=True) as database:
        finished_sweep(database, tmp_path)
        assert check(database, STUDY, finished=True) == []
        for statement in ("CREATE TABLE mine (x int)", "DROP TABLE automl_events", "ALTER TABLE trials ADD x int"):
            with (
                pytest.raises(StorageError, match=r"permission denied|must be owner"),
                database.writing("try") as writer,
            ):
                writer.execute(text(statement))


def test_the_reader_reads_everything_and_writes_nothing(address: str, tmp_path: Path) -> None:
    with open_database(url_as(OWNER, address), create=False) as database:
        finished_sweep(database, tmp_path)
    with open_database(url_as(READER, address), create=False, read_only=True) as database:
        assert check(database, STUDY, finished=True) == []
        assert len(database.optuna_storage().get_all_trials(1)) == 5
        with database.reading("look") as connection:
            assert connection.execute(text("SELECT COUNT(*) FROM automl_leaderboard")).scalar() == 5
    parameters = psycopg_parameters(url_as(READER, address))
    with psycopg.connect(**parameters, autocommit=True) as plain:
        assert plain.execute("SHOW statement_timeout").fetchone() == ("5s",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            plain.execute("DELETE FROM automl_events")
        plain.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            plain.execute("DELETE FROM automl_events")


# Whoever takes over the web application's container can queue sweeps, and look; no row that it may write is run.
def test_the_web_submits_and_cancels_and_changes_nothing_else(address: str, tmp_path: Path) -> None:
    with open_database(url_as(OWNER, address), create=False) as database:
        finished_sweep(database, tmp_path)
    with open_database(url_as(WEB, address), create=False) as database:
        assert check(database, STUDY, finished=True) == []
        first = submit(database, "one", "version: 1", "somebody")
        with pytest.raises(SubmissionRefused):
            submit(database, "one", "version: 1", "somebody")
        assert cancel(database, first.id).state == "CANCELLED"
        tables = [name for name in metadata.tables if name != "automl_submissions"]
        writes = [f"INSERT INTO {name} DEFAULT VALUES" for name in tables]
        writes += [f"UPDATE {name} SET {list(metadata.tables[name].c)[-1].name} = NULL" for name in tables]
        writes += [f"DELETE FROM {name}" for name in (*metadata.tables, "trials", "studies")]
        writes += ["UPDATE automl_submissions SET space_text = 'x'", "UPDATE automl_submissions SET study_name = 'x'"]
        writes += ["CREATE TABLE mine (x int)", "INSERT INTO studies (study_name) VALUES ('x')"]
        for statement in writes:
            with pytest.raises(StorageError, match="permission denied"), database.writing("try") as writer:
                writer.execute(text(statement))
    with open_database(url_as(WRITER, address), create=False) as database:
        assert [each.study for each in list_submissions(database)] == ["one"]


def test_a_restored_database_leaves_every_role_its_rights(address: str, tmp_path: Path) -> None:
    copy = back_up(url_as(OWNER, address), tmp_path / "copy.dump")
    restore(copy.path, url_as(OWNER, address), overwrite=True)
    with open_database(url_as(WEB, address), create=False) as database:
        first = submit(database, "one", "version: 1", "somebody")
        assert cancel(database, first.id).state == "CANCELLED"
    with open_database(url_as(WRITER, address), create=False) as database:
        finished_sweep(database, tmp_path)
    with open_database(url_as(READER, address), create=False, read_only=True) as database:
        assert check(database, STUDY, finished=True) == []


def test_strangers_cannot_connect(address: str) -> None:
    with open_database(address, create=False) as admin, admin.writing("make a stranger") as connection:
        connection.execute(text("DROP ROLE IF EXISTS stranger"))
        connection.execute(text("CREATE ROLE stranger LOGIN PASSWORD 'x'"))
    url = make_url(address).set(username="stranger", password="x").render_as_string(hide_password=False)
    with pytest.raises(StorageError, match="permission denied for database"):
        open_database(url, create=False)


def test_the_printed_statements_hold_no_password_and_can_be_repeated() -> None:
    address = fresh_postgres()
    statements = role_statements(address)
    assert not any("password" in statement.lower() for statement in statements)
    with open_database(address, create=False) as database, database.writing("apply") as connection:
        for statement in 2 * statements:
            connection.execute(text(statement.replace(":", r"\:")))


def test_sqlite_has_no_roles() -> None:
    with pytest.raises(StorageError, match="SQLite has no roles"):
        role_statements("sqlite:///automl.db")
