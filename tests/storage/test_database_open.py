"""Opening, creating and refusing databases."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from automl.errors import StorageError
from automl.storage.migrations import revisions
from automl.storage.sql import Database, database_status, open_database
from automl.storage.upgrade import upgrade_database
from automl.trial import Measurement
from tests.databases import fresh_postgres, fresh_sqlite

Damage = Callable[[Path], None]


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.commit()


def half_of_one(path: Path) -> None:
    fresh_sqlite(path.parent)
    whole = next(path.parent.glob("study-*.db"))
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damaged_pages(path: Path) -> None:
    shutil.copy(fresh_sqlite(path.parent).removeprefix("sqlite:///"), path)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(20_000))


def newer_revision(path: Path) -> None:
    shutil.copy(fresh_sqlite(path.parent).removeprefix("sqlite:///"), path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE automl_alembic_version SET version_num = '9999'")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _ignore(_: object) -> None:
    pass


def write(content: bytes) -> Damage:
    return lambda path: _ignore(path.write_bytes(content))


UNUSABLE = [
    pytest.param(write(b""), "empty", id="0 bytes"),
    pytest.param(write(b"hello" * 1000), "not a SQLite database", id="garbage"),
    pytest.param(write(b"SQLite format 3\x00" + b"\x07" * 5000), "cannot read|damaged", id="garbage behind the header"),
    pytest.param(half_of_one, "damaged|cannot read", id="truncated"),
    pytest.param(damaged_pages, "damaged|cannot read", id="damaged pages"),
    pytest.param(other_program, "another program .alembic_version, runs.", id="of another program"),
    pytest.param(newer_revision, r"newer automl .revision 9999, this one knows \d{4}.", id="of a newer automl"),
]


@pytest.mark.parametrize("create", [False, True], ids=["open", "create"])
@pytest.mark.parametrize(("damage", "message"), UNUSABLE)
def test_a_file_that_is_no_database_of_ours_is_refused_and_left_alone(
    tmp_path: Path, damage: Damage, message: str, create: bool
) -> None:
    path = tmp_path / "automl.db"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=message) as caught:
        open_database(f"sqlite:///{path}", create=create)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


# Every page of a file of gigabytes takes seconds: those look at it who will write, and who asks whether it is whole.
def test_a_large_file_is_looked_at_page_by_page_by_who_writes_or_asks(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with open_database(sqlite_url, create=False) as database:
        for _ in range(34):
            database.store("large").add_event("filled", {"text": "x" * (1 << 20)})
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(200_000))
    for look in (
        lambda: open_database(sqlite_url, create=True),
        lambda: database_status(sqlite_url, thorough=True),
        lambda: upgrade_database(sqlite_url),
    ):
        with pytest.raises(StorageError, match="damaged"):
            look()
    with open_database(sqlite_url, create=False) as database:
        assert database.study_names() == []
        with pytest.raises(StorageError, match=r"cannot read events: .*; restore a backup"):
            database.store("large").events()
        with pytest.raises(StorageError, match="damaged"):
            database.check_pages()


def test_a_missing_file_is_named_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no such database; create it with `automl db init`"):
        open_database(f"sqlite:///{tmp_path}/automl.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"folder '.*nowhere' does not exist"):
        open_database(f"sqlite:///{tmp_path}/nowhere/automl.db", create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a file"):
        open_database(f"sqlite:///{tmp_path}", create=False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "needs a database file"),
        ("sqlite:///:memory:", "needs a database file"),
        ("mysql://user:hunter2@host/db", "'mysql' is not supported"),
        ("automl.db", "is not a database URL"),
        ("postgresql://user:hunter2@host:port/db", "is not a database URL"),
    ],
)
def test_unsupported_urls_are_refused_without_their_password(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        open_database(url, create=True)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["with space.db", "braces {x} and 5%.db", "#hash, ü.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    url = f"sqlite:///{path}"
    with open_database(url, create=True) as database:
        assert database.optuna_storage().get_all_studies() == []
        assert database.url == url
    assert path.exists()


def test_creating_again_changes_nothing(url: str) -> None:
    with open_database(url, create=False) as database:
        database.store("s").add_event("x", {})
    with open_database(url, create=True) as database:
        assert len(database.store("s").events()) == 1
        assert database.status().ready


def test_optunas_tables_may_be_there_already(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/optuna.db"
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(study_name="old", storage=storage)
    storage.engine.dispose()
    with pytest.raises(StorageError, match="no tables of automl; create them with `automl db init`"):
        open_database(url, create=False)
    with open_database(url, create=True) as database:
        assert [study.study_name for study in database.optuna_storage().get_all_studies()] == ["old"]


# A creation that was killed leaves a draft, never a half-made database.
def test_the_draft_of_a_killed_creation_is_replaced(tmp_path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f".automl.db.new{suffix}").write_bytes(b"half")
    open_database(f"sqlite:///{tmp_path}/automl.db", create=True).close()
    assert not list(tmp_path.glob(".*"))
    assert database_status(f"sqlite:///{tmp_path}/automl.db").ready


def test_every_connection_has_the_safe_settings(sqlite_url: str) -> None:
    with (
        open_database(sqlite_url, create=False) as database,
        database.reading("look") as ours,
        database.optuna_storage().engine.connect() as optunas,
    ):
        for connection in (ours, optunas):
            settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS]
            assert dict(zip(PRAGMAS, settings, strict=True)) == PRAGMAS


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000, "foreign_keys": 1}


def test_a_viewer_reads_and_cannot_write(url: str) -> None:
    from optuna.exceptions import StorageInternalError
    from optuna.study import StudyDirection

    with open_database(url, create=False) as writer:
        writer.store("s").add_event("seen", {})
    with open_database(url, create=False, read_only=True) as viewer:
        assert [kind for _, kind, _ in viewer.store("s").events()] == ["seen"]
        with pytest.raises(StorageError, match=r"cannot record event 'x' .study 's'.: .*read.?only"):
            viewer.store("s").add_event("x", {})
        storage = viewer.optuna_storage()
        assert storage.get_all_studies() == []
        with pytest.raises(StorageInternalError):
            storage.create_new_study([StudyDirection.MINIMIZE], "new")


def test_status_describes_a_database_of_any_age(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/automl.db"
    assert not database_status(url).exists
    assert database_status(url).advice == "automl db init"
    with open_database(url, create=True) as database:
        status = database.status()
        assert (status.ready, status.advice, status.studies) == (True, None, 0)
        assert status.bytes == (tmp_path / "automl.db").stat().st_size
        assert status.revision == status.head == revisions()[0]


# Committed but not yet checkpointed: what kill -9 leaves is the database file and its write-ahead log.
def test_results_of_a_killed_driver_are_there(
    sqlite_url: str, start_process: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start_process("hold", sqlite_url, "s", 30)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "run 1\n"
    holder.kill()
    holder.wait()
    with open_database(sqlite_url, create=False) as database:
        assert database.store("s").attempts()[0].run == 1


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_twelve_processes_create_it_at_once(
    kind: str, tmp_path: Path, start_process: Callable[..., subprocess.Popen[str]]
) -> None:
    url = f"sqlite:///{tmp_path}/automl.db" if kind == "sqlite" else fresh_postgres(tables=False)
    output, errors = start_process("create", url, 12).communicate(timeout=600)
    assert output.splitlines() == ["ok True"] * 12, errors
    if kind == "sqlite":
        assert not list(tmp_path.glob(".*"))


@pytest.mark.postgres
class TestPostgres:
    def test_a_password_with_special_characters_connects_and_is_never_shown(self) -> None:
        url = fresh_postgres()
        with open_database(url, create=False) as database:
            storage = database.optuna_storage()
            assert storage.get_all_studies() == []
            for text in (repr(database), database.url, str(database.status()), repr(storage.engine), storage.url):
                assert "p@ss" not in text
                assert "p%40ss" not in text

    def test_a_wrong_password_is_not_repeated(self) -> None:
        url = fresh_postgres().replace("p%40ss", "wrong-hunter2")
        with pytest.raises(StorageError, match=r"cannot read the database: .*password authentication failed") as caught:
            open_database(url, create=False)
        assert "hunter2" not in str(caught.value)

    def test_a_missing_database_is_named(self) -> None:
        with pytest.raises(StorageError, match='database "nowhere" does not exist'):
            open_database(_other(fresh_postgres()), create=False)

    def test_an_empty_database_is_created_only_on_demand(self) -> None:
        url = fresh_postgres(tables=False)
        with pytest.raises(StorageError, match="create them with `automl db init`"):
            open_database(url, create=False)
        open_database(url, create=True).close()

    # A pickle of Optuna's storage would carry the password into Ray's files.
    def test_optunas_storage_is_not_pickled(self) -> None:
        import pickle

        with open_database(fresh_postgres(), create=False) as database, pytest.raises(TypeError, match="credentials"):
            pickle.dumps(database.optuna_storage())

    def test_a_restarted_server_is_no_error(self) -> None:
        with open_database(fresh_postgres(), create=False) as database:
            store = database.store("s")
            store.add_measurements([Measurement(trial=0, step=1, metrics={"loss": 1.0})])
            _end_connections(database)
            assert len(store.measurements()) == 1


def _other(url: str) -> str:
    head, _, host = url.partition("?")
    return f"{head.rpartition('/')[0]}/nowhere?{host}"


def _end_connections(database: Database) -> None:
    with (
        open_database(database.address.render_as_string(hide_password=False), create=False) as admin,
        admin.reading("end the other connections") as connection,
    ):
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_missing_driver_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from automl.errors import MissingExtraError\n"
        "from automl.storage.sql import open_database\n"
        "try: open_database('postgresql://u:p@h/d', create=False)\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    assert "automl-lora[postgres]" in done.stdout


# A descriptor of our own on the file would drop the locks of this process's connections when it is closed; the other
# process would then believe to be the last and delete the write-ahead log, and this one go on in a deleted file.
def test_looking_at_a_database_takes_no_lock_away_from_open_connections(sqlite_url: str) -> None:
    write = "import sys; from automl.storage.sql import open_database as o; d = o(sys.argv[1], create=False)"
    write += "; d.store('s').add_event('written', {}); d.close()"
    with open_database(sqlite_url, create=False) as database:
        database.store("s").add_event("kept", {})
        database_status(sqlite_url)
        open_database(sqlite_url, create=False).close()
        subprocess.run([sys.executable, "-c", write, sqlite_url], check=True, timeout=240)
        assert Path(sqlite_url.removeprefix("sqlite:///") + "-wal").exists()
        assert [kind for _, kind, _ in database.store("s").events()] == ["kept", "written"]
