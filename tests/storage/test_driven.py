"""Who may delete: nobody, while a study is driven; and nobody begins to drive what is being deleted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text, update

from automl.errors import LeaseLostError, StudyBusyError
from automl.storage.backup import back_up, restore
from automl.storage.invariants import check, repair
from automl.storage.lease import StudyLease, drivers, held
from automl.storage.overview import study_totals
from automl.storage.process import process_identity
from automl.storage.removal import remove_study
from automl.storage.sql import Database, database_status, open_database
from automl.storage.tables import Now, sweeps
from automl.storage.upgrade import upgrade_database
from automl.storage.url import parse_url
from automl.trial import Measurement
from tests.storage.sweeps import STUDY, finished_sweep
from tests.storage.test_migrations import make_older

Change = Callable[[str, Path], object]


def removal(url: str, folder: Path) -> object:
    with open_database(url, create=False) as database:
        return remove_study(database, STUDY)


def doctor(url: str, folder: Path) -> object:
    with open_database(url, create=False) as database:
        return repair(database, STUDY)


def upgrade(url: str, folder: Path) -> object:
    if database_status(url).ready:
        make_older(url)
    return upgrade_database(url)


def restoration(url: str, folder: Path) -> object:
    back_up(url, folder / "copy")
    return restore(folder / "copy", url, overwrite=True)


CHANGES = [removal, doctor, upgrade, restoration]


@pytest.fixture
def filled(url: str, tmp_path: Path) -> str:
    with open_database(url, create=False) as database:
        finished_sweep(database, tmp_path)
    return url


@pytest.fixture
def dead() -> Iterator[str]:
    """Identity of a process that has ended and is not yet reaped."""
    process = subprocess.Popen(["sleep", "600"])
    identity = process_identity(process.pid)
    process.kill()
    yield identity
    process.wait()


def drive(url: str, process: str, seconds: float) -> None:
    """As a driver leaves it: its process, and the seconds until its lease expires."""
    with Database(parse_url(url)) as database, database.writing("drive") as connection:
        held_by = {"owner": "elsewhere:17:cafe0123", "owner_process": process, "lease_until": Now(seconds)}
        connection.execute(update(sweeps).values(held_by))


def rows(url: str) -> dict[str, int]:
    """Of every table, Optuna's and ours."""
    with open_database(url, create=False) as database, database.reading("count") as connection:
        names = inspect(connection).get_table_names()
        return {name: connection.execute(text(f"SELECT COUNT(*) FROM {name}")).scalar_one() for name in names}


@pytest.mark.parametrize("change", CHANGES)
def test_a_driver_that_waits_for_the_database_is_left_alone(change: Change, filled: str, tmp_path: Path) -> None:
    drive(filled, process_identity(), -60)
    before = rows(filled)
    with pytest.raises(StudyBusyError, match=f"study '{STUDY}' is being driven by process 17 on elsewhere"):
        change(filled, tmp_path)
    if database_status(filled).ready:
        assert rows(filled) == before


@pytest.mark.parametrize("change", CHANGES)
def test_one_that_cannot_be_seen_is_left_alone_until_its_lease_expires(
    change: Change, filled: str, tmp_path: Path
) -> None:
    drive(filled, "", 60)
    with pytest.raises(StudyBusyError):
        change(filled, tmp_path)
    (tmp_path / "copy").unlink(missing_ok=True)
    drive(filled, "", -1)
    assert change(filled, tmp_path)


@pytest.mark.parametrize("change", CHANGES)
def test_of_a_dead_one_all_may_be_changed_at_once(change: Change, filled: str, tmp_path: Path, dead: str) -> None:
    drive(filled, dead, 3600)
    assert change(filled, tmp_path)
    assert database_status(filled).ready


def test_viewers_and_the_doctor_say_the_same(database: Database, url: str) -> None:
    with StudyLease(database, STUDY) as lease:
        run = lease.take("text", "a" * 64, {})
        database.store(STUDY).start_attempt(0, worker=0, run=run)
        for process, seconds, is_driven in ((process_identity(), -60, True), ("", 60, True), ("", -1, False)):
            drive(url, process, seconds)
            (totals,) = study_totals(database, [STUDY])
            with database.reading("see") as connection:
                assert [driver.study for driver in drivers(connection)] == [STUDY] * is_driven
            assert (totals.driver is not None) == is_driven
            assert [found.id for found in check(database, STUDY, finished=False)] == ["I13"] * (not is_driven)


class TestHeld:
    def test_nobody_drives_it_meanwhile_and_no_run_is_counted(self, database: Database) -> None:
        with StudyLease(database, STUDY) as lease:
            lease.take("text", "a" * 64, {})
        for study in (STUDY, None):
            with held(database, study), StudyLease(database, STUDY) as other, pytest.raises(StudyBusyError):
                other.take("text", "a" * 64, {})
        row = database.store(STUDY).sweep()
        assert (row.runs, row.owner, row.lease_until) == (1, None, None)

    def test_whoever_has_lost_it_changes_nothing(self, database: Database, url: str) -> None:
        with StudyLease(database, STUDY) as lease:
            lease.take("text", "a" * 64, {})
        with held(database, STUDY) as guard:
            drive(url, "", 60)
            with pytest.raises(LeaseLostError, match="taken over by process 17 on elsewhere"):
                database.store(STUDY, guard).add_event("late", {})
        assert database.store(STUDY).sweep().owner == "elsewhere:17:cafe0123"

    def test_a_study_without_a_row_may_be_taken_but_then_is_not_changed(self, database: Database) -> None:
        with held(database, STUDY) as guard:
            database.store(STUDY, guard).add_event("nobody drives", {})
            with StudyLease(database, STUDY) as lease:
                lease.take("text", "a" * 64, {})
                with pytest.raises(LeaseLostError):
                    database.store(STUDY, guard).add_event("driven", {})


def test_a_removed_study_leaves_nothing_in_any_table(database: Database, url: str, tmp_path: Path) -> None:
    database.optuna_storage().create_new_study([], "stays")
    before = rows(url)
    finished_sweep(database, tmp_path)
    assert remove_study(database, STUDY)
    assert rows(url) == before
    assert not remove_study(database, STUDY)


def test_a_removal_that_was_killed_is_completed_at_once(
    database: Database, url: str, tmp_path: Path, start_process: Callable[..., subprocess.Popen[str]]
) -> None:
    before = rows(url)
    finished_sweep(database, tmp_path)
    many = [Measurement(trial=9, step=step, metrics={"a": 0.5}, seconds=1.0, tokens=1) for step in range(1, 12_000)]
    database.store(STUDY).add_measurements(many)
    killed = start_process("remove", url, STUDY)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "removing\n"
    deadline = time.monotonic() + 60
    while rows(url)["automl_metric_values"] > 10_000 and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    remove_study(database, STUDY)
    assert rows(url) == before


# It was made while its study was driven, by a process that may well go on: with the original.
def test_a_restored_copy_is_driven_by_nobody(filled: str, tmp_path: Path) -> None:
    drive(filled, process_identity(), 3600)
    back_up(filled, tmp_path / "copy")
    drive(filled, "", -1)
    restore(tmp_path / "copy", filled, overwrite=True)
    with open_database(filled, create=False) as database:
        with database.reading("see") as connection:
            assert drivers(connection) == []
        assert remove_study(database, STUDY)


def test_an_upgrade_gives_the_leases_back(filled: str, tmp_path: Path) -> None:
    upgrade(filled, tmp_path)
    with open_database(filled, create=False) as database:
        assert database.store(STUDY).sweep().owner is None
