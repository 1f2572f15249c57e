"""At most one driver holds a study's lease, whatever happens to the others. Times are real and short."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta

import optuna
import pytest
from sqlalchemy import select, update

from automl.errors import LeaseLostError, SpaceChangedError, StorageError, StudyBusyError
from automl.storage.base import AttemptState
from automl.storage.lease import StudyLease
from automl.storage.process import is_alive, process_identity
from automl.storage.sql import Database, open_database
from automl.storage.tables import Now, sweeps

OLD, NEW = "a" * 64, "b" * 64
LOST = "the lease was taken over by process 17 on elsewhere; nothing more is written"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def lease(database: Database) -> Iterator[StudyLease]:
    with StudyLease(database, "topics") as lease:
        yield lease


def holder_of(database: Database) -> str | None:
    return database.store("topics").sweep().owner


class TestTaking:
    def test_records_the_space_and_counts_the_runs(self, database: Database) -> None:
        for run in (1, 2):
            with StudyLease(database, "topics") as lease:
                assert lease.take(f"text {run}", OLD, {"git": "abc", "nested": {"n": 1}}) == run
                row = database.store("topics").sweep()
                assert (row.space_text, row.runs, row.owner) == (f"text {run}", run, lease.owner)
                assert row.provenance == {"git": "abc", "nested": {"n": 1}}
        row = database.store("topics").sweep()
        assert (row.owner, row.lease_until) == (None, None)
        assert [detail["run"] for _, kind, detail in database.store("topics").events() if kind == "run_started"] == [
            1,
            2,
        ]

    def test_a_second_one_is_refused_at_once_with_host_and_process(self, database: Database, lease: StudyLease) -> None:
        lease.take("text", OLD, {})
        host, pid, _ = lease.owner.rsplit(":", 2)
        began = time.monotonic()
        with StudyLease(database, "topics") as second, pytest.raises(StudyBusyError, match=f"process {pid} on {host}"):
            second.take("text", OLD, {})
        assert time.monotonic() - began < 20  # the lease lasts 30 s
        assert holder_of(database) == lease.owner

    def test_another_study_is_free(self, database: Database, lease: StudyLease) -> None:
        lease.take("text", OLD, {})
        with StudyLease(database, "other") as other:
            assert other.take("text", OLD, {}) == 1

    def test_a_changed_space_is_refused_unless_allowed(self, database: Database) -> None:
        with StudyLease(database, "topics") as lease:
            lease.take("old", OLD, {})
        with StudyLease(database, "topics") as lease:
            with pytest.raises(SpaceChangedError, match=r"another space file \(aaaaaaaa, this one is bbbbbbbb\)"):
                lease.take("new", NEW, {})
            assert database.store("topics").sweep().space_text == "old"
            assert lease.take("new", NEW, {}, allow_space_change=True) == 2
        row = database.store("topics").sweep()
        assert (row.space_text, row.space_sha256) == ("new", NEW)
        assert ("space_changed", {"from": OLD, "to": NEW}) in [event[1:] for event in database.store("topics").events()]

    def test_closes_attempts_of_a_dead_driver(self, database: Database, lease: StudyLease) -> None:
        store = database.store("topics")
        store.start_attempt(0, worker=0, run=1)
        lease.take("text", OLD, {})
        (attempt,) = store.attempts()
        assert (attempt.state, attempt.reason) == (AttemptState.LOST, "its driver died")


class TestHolding:
    def test_renews_beyond_its_duration(self, database: Database) -> None:
        with StudyLease(database, "topics", ttl_seconds=0.6) as lease:
            lease.take("text", OLD, {})
            first = database.store("topics").sweep().lease_until
            assert first is not None
            deadline = time.monotonic() + 60
            while (last := database.store("topics").sweep().lease_until) is None or last - first < timedelta(seconds=1):
                assert time.monotonic() < deadline, f"not renewed: {first}, {last}"
                time.sleep(0.05)
            lease.verify()

    def test_losing_it_is_noticed_and_forbids_writing(self, database: Database) -> None:
        lost: list[str] = []
        noticed = threading.Event()
        with StudyLease(database, "topics", 0.6, lambda message: (lost.append(message), noticed.set())[0]) as lease:
            lease.take("text", OLD, {})
            store = database.store("topics", guard=lease.verify)
            storage = database.optuna_storage(guard=lease.verify)
            _take_over(database, "elsewhere:17:cafe0123")
            assert noticed.wait(120)
            assert lost == [
                "study 'topics': the lease was taken over by process 17 on elsewhere; nothing more is written"
            ]
            with pytest.raises(LeaseLostError, match="process 17 on elsewhere"):
                store.add_event("late", {})
            with pytest.raises(LeaseLostError):
                storage.create_new_study([], "late")
        assert holder_of(database) == "elsewhere:17:cafe0123"
        assert "late" not in [kind for _, kind, _ in database.store("topics").events()]

    # A driver that was stopped for long finds its trial ended before any commit of its own is refused.
    def test_finding_a_trial_ended_by_the_next_driver_says_so(self, database: Database) -> None:
        with StudyLease(database, "topics", 30.0, lambda message: None) as lease:
            lease.take("text", OLD, {})
            mine = optuna.create_study(study_name="topics", storage=database.driver_storage(lease.verify))
            trial = mine.ask()
            _take_over(database, "elsewhere:17:cafe0123")
            optuna.load_study(study_name="topics", storage=database.optuna_storage()).tell(trial.number, 1.0)
            with pytest.raises(LeaseLostError, match="process 17 on elsewhere"):
                trial.report(0.5, 1)

    def test_reading_needs_no_lease(self, database: Database, lease: StudyLease) -> None:
        lease.take("text", OLD, {})
        _take_over(database, "elsewhere:17:cafe0123")
        assert database.store("topics", guard=lease.verify).events()

    def test_verify_before_taking_it_is_refused(self, database: Database, lease: StudyLease) -> None:
        with pytest.raises(LeaseLostError):
            lease.verify()


class TestOtherMachines:
    """A holder whose process cannot be seen from here."""

    def test_a_silent_one_is_replaced_when_its_lease_expires(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        began = time.monotonic()
        _held_by(database, "elsewhere:17:cafe0123", seconds=3.0)
        with StudyLease(database, "topics", 6.0) as lease:
            assert lease.take("text", OLD, {}) == 2
        assert time.monotonic() - began > 2.9
        assert re.search(r"process 17 on elsewhere cannot be seen from here; taking over in [0123] s", caplog.text)

    def test_one_that_renews_is_left_alone(self, database: Database) -> None:
        _held_by(database, "elsewhere:17:cafe0123", seconds=20.0)
        refused = threading.Event()

        def renew() -> None:  # again and again: one renewal might come before it is looked at for the first time
            while not refused.wait(0.5):
                _held_by(database, "elsewhere:17:cafe0123", seconds=20.0)

        renewal = threading.Thread(target=renew)
        renewal.start()
        try:
            with (
                StudyLease(database, "topics", 20.0) as lease,
                pytest.raises(StudyBusyError, match="process 17 on elsewhere"),
            ):
                lease.take("text", OLD, {})
        finally:
            refused.set()
            renewal.join()
        assert holder_of(database) == "elsewhere:17:cafe0123"

    def test_one_with_a_longer_lease_than_ours_is_not_waited_for(self, database: Database) -> None:
        _held_by(database, "elsewhere:17:cafe0123", seconds=3600)
        with StudyLease(database, "topics") as lease, pytest.raises(StudyBusyError, match="process 17 on elsewhere"):
            lease.take("text", OLD, {})


class TestProcesses:
    def test_kill_of_the_holder_frees_the_study_at_once(self, url: str, start_process: Start) -> None:
        holder = _holding(start_process, url, 300)
        refused = start_process("take", url, "topics", 300)
        output, _ = refused.communicate(timeout=240)
        assert refused.returncode == 3
        assert f"is being driven by process {holder.pid} on" in output
        holder.kill()
        holder.wait()
        began = time.monotonic()
        with open_database(url, create=False) as database, StudyLease(database, "topics", 300) as lease:
            assert lease.take("space", OLD, {}) == 2
            assert database.store("topics").attempts()[0].state is AttemptState.LOST
        assert time.monotonic() - began < 200  # the lease lasts 300 s

    # A stopped driver is alive, but its lease is not: when it goes on, it must not write a single row.
    def test_a_stopped_holder_ends_itself_when_it_goes_on(self, url: str, start_process: Start) -> None:
        holder = _holding(start_process, url, 3)
        _stop_between_writes(holder, url)
        with open_database(url, create=False) as database, StudyLease(database, "topics", 30) as lease:
            _until_expired(database)
            assert lease.take("space", OLD, {}) == 2
            events = len(database.store("topics").events())
            holder.send_signal(signal.SIGCONT)
            _, errors = holder.communicate(timeout=240)
            assert holder.returncode in (1, 3)  # the renewing thread, or the write that was refused
            assert "taken over by process" in errors
            assert holder_of(database) == lease.owner
            assert len(database.store("topics").events()) == events

    def test_of_many_at_once_one_wins(self, url: str) -> None:
        with open_database(url, create=False) as database:
            leases = [StudyLease(database, "topics") for _ in range(6)]
            outcomes: list[object] = []
            barrier = threading.Barrier(len(leases))

            def race(lease: StudyLease) -> None:
                barrier.wait()
                try:
                    outcomes.append(lease.take("text", OLD, {}))
                except StorageError as error:
                    outcomes.append(type(error))

            threads = [threading.Thread(target=race, args=(lease,)) for lease in leases]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for lease in leases:
                lease.__exit__()
        assert sorted(map(str, outcomes)) == sorted(["1", *[str(StudyBusyError)] * 5])


# The database is away for longer than the lease: somebody else may have taken it, so this driver ends.
def test_a_database_that_stays_away_loses_the_lease(sqlite_url: str) -> None:
    lost: list[str] = []
    noticed = threading.Event()
    with open_database(sqlite_url, create=False) as database:
        lease = StudyLease(database, "topics", 0.9, lambda message: (lost.append(message), noticed.set())[0])
        lease.take("text", OLD, {})
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as blocker:
            blocker.execute("BEGIN EXCLUSIVE")
            assert noticed.wait(120)
        lease.__exit__()
    assert lost[0].startswith("study 'topics': lease not renewed for 1 s: ")
    assert "database is locked" in lost[0]


class TestProcessIdentity:
    def test_of_a_live_process_is_stable(self) -> None:
        assert process_identity() == process_identity() != ""
        assert is_alive(process_identity()) is True

    def test_of_an_ended_process_is_dead_even_before_it_is_reaped(self) -> None:
        process = subprocess.Popen(["sleep", "60"])
        identity = process_identity(process.pid)
        assert is_alive(identity) is True
        process.kill()
        deadline = time.monotonic() + 60
        while is_alive(identity) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_alive(identity) is False
        process.wait()
        assert is_alive(identity) is False

    def test_a_reused_id_is_another_process(self) -> None:
        head, _, start = process_identity().rpartition(":")
        assert is_alive(f"{head}:{int(start) - 1}") is False

    @pytest.mark.parametrize("identity", ["", "another-boot:4026531836:1:1", "nonsense"])
    def test_of_another_machine_is_unknown(self, identity: str) -> None:
        assert is_alive(identity) is None


def _holding(start_process: Start, url: str, ttl: float) -> subprocess.Popen[str]:
    holder = start_process("hold", url, "topics", ttl)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "run 1\n"
    return holder


def _stop_between_writes(holder: subprocess.Popen[str], url: str) -> None:
    """Stop a process, but not inside a transaction: it would keep SQLite's write lock, or the row of the lease."""
    holder.send_signal(signal.SIGSTOP)
    while _is_locked(url):
        holder.send_signal(signal.SIGCONT)
        time.sleep(0.02)
        holder.send_signal(signal.SIGSTOP)


def _is_locked(url: str) -> bool:
    if not url.startswith("sqlite"):
        return _is_row_locked(url)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0.1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def _is_row_locked(url: str) -> bool:
    import psycopg

    with psycopg.connect(url) as connection:
        try:
            connection.execute("SELECT 1 FROM automl_sweeps FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return True
    return False


def _take_over(database: Database, owner: str) -> None:
    with database.writing("take over") as connection:
        connection.execute(update(sweeps).values(owner=owner, owner_process="", lease_until=Now(3600)))


def _held_by(database: Database, owner: str, seconds: float) -> None:
    """Make it look as if a driver on another machine had just renewed."""
    if not database.studies():
        with StudyLease(database, "topics") as lease:
            lease.take("text", OLD, {})
    with database.writing("renew elsewhere") as connection:
        connection.execute(update(sweeps).values(owner=owner, owner_process="", lease_until=Now(seconds)))


def _until_expired(database: Database) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with database.reading("wait") as connection:
            if connection.execute(select(sweeps.c.lease_until < Now())).scalar():
                return
        time.sleep(0.05)
    raise AssertionError("the lease did not expire")
