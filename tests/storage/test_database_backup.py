"""A backup is whole and verified, and a restore loses nothing that it was not told to replace."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from automl.errors import MissingExtraError, StorageError
from automl.storage.backup import back_up, restore
from automl.storage.invariants import check
from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from tests.databases import fresh_postgres
from tests.storage.sweeps import STUDY, finished_sweep


def empty_database(kind: str, folder: Path) -> str:
    """URL of a database to restore into: none yet, or one without tables."""
    return f"sqlite:///{folder / 'other.db'}" if kind == "sqlite" else fresh_postgres(tables=False)


def address_of(database: Database) -> str:
    return database.address.render_as_string(hide_password=False)


def rows(address: str) -> tuple[object, ...]:
    with open_database(address, create=False) as database:
        store = database.store(STUDY)
        trials = database.optuna_storage().get_all_trials(1)
        return store.measurements(), store.attempts(), store.artifacts(), store.events(), trials


@pytest.fixture
def filled(database: Database, tmp_path: Path) -> Database:
    finished_sweep(database, tmp_path / "adapters")
    return database


def test_a_restored_backup_has_every_row(filled: Database, tmp_path: Path) -> None:
    kind = "sqlite" if "sqlite" in filled.url else "postgresql"
    backup = back_up(address_of(filled), tmp_path / "copy")
    assert (backup.studies, backup.bytes) == (1, (tmp_path / "copy").stat().st_size)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    target = empty_database(kind, tmp_path)
    assert restore(tmp_path / "copy", target).ready
    assert rows(target) == rows(address_of(filled))
    with open_database(target, create=False) as database:
        assert check(database, STUDY, finished=True) == []


def test_a_backup_overwrites_nothing(filled: Database, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    with pytest.raises(StorageError, match="copy: exists already; a backup does not overwrite anything"):
        back_up(address_of(filled), tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "precious"


def test_a_restore_replaces_only_when_told(filled: Database, tmp_path: Path) -> None:
    address = address_of(filled)
    back_up(address, tmp_path / "copy")
    filled.store(STUDY).add_event("later", {})
    with pytest.raises(StorageError, match="add --overwrite to replace"):
        restore(tmp_path / "copy", address)
    filled.close()
    restore(tmp_path / "copy", address, overwrite=True)
    with open_database(address, create=False) as database:
        assert "later" not in [kind for _, kind, _ in database.store(STUDY).events()]


def test_a_driven_database_is_not_replaced(filled: Database, tmp_path: Path) -> None:
    back_up(address_of(filled), tmp_path / "copy")
    with StudyLease(filled, "driven") as lease:
        lease.take("text", "a" * 64, {})
        with pytest.raises(StorageError, match="study 'driven' is being driven"):
            restore(tmp_path / "copy", address_of(filled), overwrite=True)
    assert list(tmp_path.glob("*.before-restore-*")) == []


def test_a_damaged_backup_is_refused_and_replaces_nothing(filled: Database, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back_up(address_of(filled), copy)
    copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    before = rows(address_of(filled))
    with pytest.raises(StorageError):
        restore(copy, address_of(filled), overwrite=True)
    assert rows(address_of(filled)) == before


class TestSqlite:
    # A copy in several steps begins anew at each commit, so beside a busy driver it never came to its end.
    def test_a_backup_ends_beside_a_writer(self, sqlite_url: str, tmp_path: Path) -> None:
        with open_database(sqlite_url, create=False) as database:
            for _ in range(30):
                database.store("s").add_event("large", {"text": "x" * (1 << 20)})
        copy = threading.Thread(target=back_up, args=(sqlite_url, tmp_path / "copy"), daemon=True)
        with commits_without_pause(sqlite_url) as commits:
            copy.start()
            copy.join(120)
        assert not copy.is_alive()
        assert len(commits) > 10
        with closing(sqlite3.connect(tmp_path / "copy")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (copied,) = connection.execute("SELECT COUNT(*) FROM automl_events WHERE kind = 'small'").fetchone()
        assert copied <= len(commits)

    def test_the_replaced_file_is_kept_with_its_latest_rows(self, sqlite_url: str, tmp_path: Path) -> None:
        back_up(sqlite_url, tmp_path / "copy")
        with open_database(sqlite_url, create=False) as database:
            database.store("s").add_event("late", {})
        restore(tmp_path / "copy", sqlite_url, overwrite=True)
        (kept,) = tmp_path.glob("*.before-restore-*")
        with open_database(f"sqlite:///{kept}", create=False) as database:
            assert [kind for _, kind, _ in database.store("s").events()] == ["late"]

    # The log of a file that is replaced must not be replayed into the new one.
    def test_a_leftover_log_does_not_reach_the_restored_file(self, sqlite_url: str, tmp_path: Path) -> None:
        back_up(sqlite_url, tmp_path / "copy")
        path = Path(sqlite_url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE rubbish (x)")
            connection.execute("INSERT INTO rubbish VALUES (1)")
            connection.commit()
            log = path.with_name(path.name + "-wal").read_bytes()
        path.with_name(path.name + "-wal").write_bytes(log)
        restore(tmp_path / "copy", sqlite_url, overwrite=True)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'rubbish'").fetchall() == []

    def test_a_damaged_file_can_be_replaced_and_is_kept(self, sqlite_url: str, tmp_path: Path) -> None:
        back_up(sqlite_url, tmp_path / "copy")
        path = Path(sqlite_url.removeprefix("sqlite:///"))
        path.write_bytes(b"rubbish")
        assert restore(tmp_path / "copy", sqlite_url, overwrite=True).ready
        kept = [each for each in tmp_path.glob("*.before-restore-*") if not each.name.endswith("-wal")]
        assert [each.read_bytes() for each in kept] == [b"rubbish"]

    def test_a_folder_gets_named_copies_and_keeps_the_newest(self, sqlite_url: str, tmp_path: Path) -> None:
        folder = tmp_path / "backups"
        folder.mkdir()
        (folder / "automl-notes.db").write_text("not ours")
        made = [back_up(sqlite_url, folder, keep=2).path for _ in range(4)]
        assert sorted(folder.glob("automl-2*.db")) == made[2:]
        assert (folder / "automl-notes.db").exists()

    def test_what_is_no_database_of_ours_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE runs (id)")
            connection.commit()
        with pytest.raises(StorageError, match="holds no tables of automl"):
            back_up(f"sqlite:///{path}", tmp_path / "copy")
        with pytest.raises(StorageError, match=r"foreign.db: holds no tables of automl"):
            restore(path, f"sqlite:///{tmp_path}/new.db")
        assert not (tmp_path / "new.db").exists()

    def test_a_full_disk_leaves_no_half_a_copy(self, sqlite_url: str, tmp_path: Path) -> None:
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full")
        with pytest.raises(StorageError):
            back_up(sqlite_url, Path("/dev/full"))


@contextmanager
def commits_without_pause(url: str) -> Iterator[list[int]]:
    """Another connection writes one row after the other; gives what has been committed so far."""
    commits: list[int] = []
    ended = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            row = "INSERT INTO automl_events (study_name, at, kind, detail) VALUES ('s', '2026-01-01', 'small', '{}')"
            while not ended.is_set():
                connection.execute(row)
                connection.commit()
                commits.append(len(commits))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield commits
    finally:
        ended.set()
        writer.join()


# PostgreSQL's client programs may be missing where the server is elsewhere.
@pytest.mark.postgres
def test_missing_client_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = fresh_postgres()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="pg_dump is not installed; it comes with PostgreSQL's client programs"):
        back_up(address, tmp_path / "copy")


@pytest.mark.postgres
def test_the_password_reaches_the_programs_in_a_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_program: Callable[[str, str], None]
) -> None:
    address = fresh_postgres()
    seen = tmp_path / "seen"
    write_program("pg_dump", f'echo "$@" > {seen}; env >> {seen}; cat "$PGSERVICEFILE" > {tmp_path}/f')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(StorageError):
        back_up(address, tmp_path / "copy")
    assert "p@ss" in (tmp_path / "f").read_text()
    assert "p@ss" not in seen.read_text()
    assert "p%40ss" not in seen.read_text()
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def write_program(tmp_path: Path) -> Callable[[str, str], None]:
    def write(name: str, body: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return write
