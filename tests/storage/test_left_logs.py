"""A log that a killed process left behind never reaches a database that comes to the same name later."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from automl.storage.backup import back_up, restore
from automl.storage.sql import open_database
from automl.storage.upgrade import _backup

Start = Callable[..., object]
MARK = "of the killed driver"


def leave_logs(path: Path, start_process: Start, *, journal: bool = False) -> None:
    """A driver writes to the database and is killed with SIGKILL; then the file alone is deleted."""
    open_database(f"sqlite:///{path}", create=True).close()
    killed = start_process("killed", f"sqlite:///{path}", "old", MARK)
    killed.wait(timeout=240)  # type: ignore[attr-defined]
    log = path.with_name(path.name + "-wal")
    assert log.stat().st_size > 100_000
    if journal:  # SQLite rolls a journal back as it replays a log
        log.rename(path.with_name(path.name + "-journal"))
    path.unlink()


def contents(path: Path) -> tuple[str, int, int]:
    """SQLite's verdict on the file, its studies, and its events of the killed driver."""
    with closing(sqlite3.connect(path)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        (studies,) = connection.execute("SELECT COUNT(*) FROM automl_sweeps").fetchone()
        (late,) = connection.execute("SELECT COUNT(*) FROM automl_events WHERE kind = ?", (MARK,)).fetchone()
    return verdict, studies, late


def create(path: Path, backup: Path) -> None:
    open_database(f"sqlite:///{path}", create=True).close()


def restored(path: Path, backup: Path) -> None:
    assert restore(backup, f"sqlite:///{path}").ready


def backed_up(path: Path, backup: Path) -> None:
    back_up(f"sqlite:///{backup}", path)


@pytest.mark.parametrize("bring", [create, restored, backed_up])
def test_a_new_file_is_alone(
    bring: Callable[[Path, Path], None], tmp_path: Path, start_process: Start, caplog: pytest.LogCaptureFixture
) -> None:
    path, backup = tmp_path / "x.db", tmp_path / "backup.db"
    open_database(f"sqlite:///{backup}", create=True).close()
    leave_logs(path, start_process)
    bring(path, backup)
    assert contents(path) == ("ok", 0, 0)
    (kept,) = tmp_path.glob("x.db-wal.left-*")  # whoever deleted the file by mistake still has what was in its log
    assert f"left by another database of that name; kept as {kept.name}" in caplog.text


def test_a_draft_is_alone_too(tmp_path: Path, start_process: Start) -> None:
    path = tmp_path / "x.db"
    leave_logs(path.with_name(".x.db.new"), start_process)
    create(path, path)
    assert contents(path) == ("ok", 0, 0)
    assert [file.name for file in tmp_path.glob(".x.db*")] == []


def test_a_copy_before_an_upgrade_is_alone(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    copy = _backup(path)
    assert contents(copy) == ("ok", 0, 0)
    assert not copy.with_name(copy.name + "-wal").exists()


# The file that is replaced is whole without its log, so a kill before the rename leaves no half of it.
def test_an_overwritten_file_is_complete_before_it_is_replaced(tmp_path: Path, start_process: Start) -> None:
    path, backup, kept = tmp_path / "x.db", tmp_path / "backup.db", tmp_path / "aside.db"
    open_database(f"sqlite:///{path}", create=True).close()
    back_up(f"sqlite:///{path}", backup)
    start_process("killed", f"sqlite:///{path}", "old", MARK).wait(timeout=240)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("automl.storage.sqlite_file.sync", stop_at(path.parent / ".x.db.new"))
        with pytest.raises(KeyboardInterrupt):
            restore(backup, f"sqlite:///{path}", overwrite=True)
    shutil.copy(path, kept)  # without the log
    verdict, _, late = contents(kept)
    assert (verdict, late) == ("ok", 200)
    restore(backup, f"sqlite:///{path}", overwrite=True)
    assert contents(path) == ("ok", 0, 0)
    assert {contents(copy)[2] for copy in tmp_path.glob("x.db.before-restore-*")} == {200}


def stop_at(draft: Path) -> Callable[[Path], None]:
    from automl.durable import sync

    def stopping(path: Path) -> None:
        if path == draft:
            raise KeyboardInterrupt
        sync(path)

    return stopping
