"""Each slot becomes exactly one row, and each row is run by exactly one process."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import literal, select, update

from automl.errors import StorageError, SubmissionRefused
from automl.schedule.cron import due_slots
from automl.schedule.due import fire_due, settle
from automl.schedule.job import Place
from automl.schedule.run_once import run_due
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState, Schedule, SubmissionState
from automl.storage.schedules import ScheduleStore, find_schedule, list_firings, list_schedules
from automl.storage.sql import Database, open_database
from automl.storage.submissions import (
    SubmissionStore,
    cancel,
    find_submission,
    list_schedulers,
    list_submissions,
    submit,
)
from automl.storage.tables import firings, submissions
from tests.schedule.scheduling import HandClock, add_schedule, definition, states
from tests.schedule.test_cron_times import ZONES

JUMPS = (timedelta(hours=-1), timedelta(hours=1), timedelta(days=1), timedelta(days=-1))


@pytest.mark.parametrize("zone", ZONES)
def test_every_slot_of_400_days_has_one_row_however_the_clock_jumps(
    zone: str, database: Database, tmp_path: Path
) -> None:
    generator = random.Random(zone)
    start = ZONES[zone]
    clock = HandClock(start)
    claimant = Claimant(database, clock=clock)
    add_schedule(claimant, tmp_path, timezone=zone)
    latest = start
    while clock.time < start + timedelta(days=400):
        clock.time += timedelta(days=generator.uniform(0, 20))
        if generator.random() < 0.8:  # in all about 200 jumps
            clock.time = max(start, clock.time + generator.choice(JUMPS))
        fire_due(claimant)
        latest = max(latest, clock.time)
    found = list_firings(database, "nightly")
    assert [night.slot for night in reversed(found)] == due_slots("0 2 * * *", zone, start, latest)
    assert len(found) >= 399
    assert all(night.state is not FiringState.RUNNING for night in found)


def test_a_clock_put_back_brings_no_slot_back(database: Database, clock: HandClock, tmp_path: Path) -> None:
    claimant = Claimant(database, clock=clock)
    add_schedule(claimant, tmp_path)
    clock.forward(days=1)
    assert len(fire_due(claimant)) == 1
    clock.forward(days=-1)
    assert fire_due(claimant) == []
    clock.forward(days=1, minutes=1)
    assert fire_due(claimant) == []
    assert states(database) == ["QUEUED"]


def test_after_downtime_only_the_latest_slot_runs(database: Database, clock: HandClock, tmp_path: Path) -> None:
    claimant = Claimant(database, clock=clock)
    add_schedule(claimant, tmp_path)
    clock.forward(days=3)  # noon: ten hours after the latest slot, less than the schedule catches up
    fire_due(claimant)
    assert states(database) == ["MISSED", "MISSED", "QUEUED"]
    assert "caught up 12 h 0 min late" in list_firings(database)[0].message


# Two months of every minute are more rows than one look writes; the slot that runs is still the latest of all.
def test_after_a_long_downtime_the_latest_slot_of_all_runs(
    database: Database, clock: HandClock, tmp_path: Path
) -> None:
    claimant = Claimant(database, clock=clock)
    add_schedule(claimant, tmp_path, cron="* * * * *", catch_up_seconds=None)
    clock.forward(days=8)
    seen: list[str] = []
    while fire_due(claimant, seconds=0.01):  # a batch or so at each look
        seen.append(list_firings(database, limit=1)[0].state.value)
    latest = list_firings(database, "nightly", limit=1)[0]
    assert (latest.state, latest.slot) == (FiringState.QUEUED, clock.time)
    assert len(seen) > 1
    assert set(seen[:-1]) <= {"MISSED"}
    found = Counter(states(database))
    assert found == {"MISSED": 8 * 1440 - 1, "QUEUED": 1}


@pytest.mark.parametrize(
    ("catch_up", "late", "state"),
    [
        (3600.0, 2.0, "MISSED"),
        (3600.0, 0.5, "QUEUED"),
        (0.0, 0.05, "QUEUED"),
        (0.0, 0.2, "MISSED"),
        (None, 23, "QUEUED"),
    ],
)
def test_how_late_a_slot_may_be_run(
    catch_up: float | None, late: float, state: str, database: Database, clock: HandClock, tmp_path: Path
) -> None:
    claimant = Claimant(database, clock=clock)
    add_schedule(claimant, tmp_path, catch_up_seconds=catch_up)
    clock.forward(hours=12 + late)  # the slot is at 00:00 UTC
    fire_due(claimant)
    assert states(database) == [state]


class TestOverlap:
    def test_a_slot_is_skipped_while_the_night_before_runs(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        clock.forward(days=1)
        fire_due(claimant)
        night = store.take()
        assert night is not None
        clock.forward(days=1)
        assert store.renew(night)
        fire_due(claimant)
        assert states(database) == ["RUNNING", "SKIPPED"]
        store.end(night, FiringState.SUCCEEDED, "done", exit_code=0, value=0.5)
        clock.forward(days=1)
        fire_due(claimant)
        assert states(database) == ["SUCCEEDED", "SKIPPED", "QUEUED"]

    def test_a_slot_is_queued_behind_it_and_gives_way_to_a_later_one(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path, overlap="queue")
        clock.forward(days=1)
        fire_due(claimant)
        night = store.take()
        assert night is not None
        for _ in range(2):
            clock.forward(days=1)
            assert store.renew(night)
            fire_due(claimant)
        assert states(database) == ["RUNNING", "SKIPPED", "QUEUED"]
        assert store.take() is None  # one night at a time
        store.end(night, FiringState.SUCCEEDED, "done")
        assert store.take() is not None

    def test_a_night_behind_a_running_one_is_not_waited_for(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path, overlap="queue")
        clock.forward(days=1)
        fire_due(claimant)
        older = store.take()
        assert older is not None
        store.requeue(older, "killed", wait_seconds=100_000.0)
        clock.forward(days=1)
        fire_due(claimant)
        running = store.take()
        assert running is not None
        clock.forward(seconds=50_000)
        assert store.renew(running)
        assert states(database) == ["QUEUED", "RUNNING"]

        class Renewing(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                clock.forward(seconds=1)
                return not store.renew(running)

        place = Place(url="sqlite:///none.db")
        done = run_due(Claimant(database, clock=clock), "nightly", place, Renewing())
        assert (done.text, done.exit_code) == (f"a night is being run by {claimant.owner}", 0)

    def test_the_database_itself_refuses_two_nights_at_once(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        from sqlalchemy import text

        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        for _ in range(2):
            clock.forward(seconds=1)
            store.fire_by_hand("nightly")
        running = "UPDATE automl_firings SET state = 'RUNNING', owner = 'x', lease_until = slot"
        with pytest.raises(StorageError, match="UNIQUE"), database.writing("run both") as connection:
            connection.execute(text(running))


class TestTaking:
    def test_a_night_whose_owner_is_silent_is_taken_over(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        first, second = (Claimant(database, clock=clock) for _ in range(2))
        store = add_schedule(first, tmp_path)
        clock.forward(days=1)
        fire_due(first)
        night = store.take()
        assert night is not None
        other = ScheduleStore(second)
        clock.forward(seconds=61)
        assert other.take() is None  # its owner lives, and is only busy or waits for the database
        with database.writing("move the owner to another machine") as connection:
            connection.execute(update(firings).values(owner_process="", lease_until=clock() + timedelta(seconds=1)))
        assert other.take() is None
        clock.forward(seconds=2)
        again = other.take()
        assert again is not None
        assert (again.slot, again.attempts, again.started_at) == (night.slot, 2, night.started_at)
        # The first owner changes nothing of it any more.
        assert not store.renew(night)
        assert not store.end(night, FiringState.FAILED, "late")
        assert not store.requeue(night, "late")
        assert other.end(again, FiringState.SUCCEEDED, "done", value=0.9)
        assert states(database) == ["SUCCEEDED"]

    def test_a_night_given_back_waits_and_counts_only_if_asked_to(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        clock.forward(days=1)
        fire_due(claimant)
        night = store.take()
        assert night is not None
        assert store.requeue(night, "killed", wait_seconds=30)
        assert store.take() is None
        clock.forward(seconds=31)
        night = store.take()
        assert night is not None
        assert night.attempts == 2
        assert store.requeue(night, "the scheduler ends", counts=False)
        night = store.take()
        assert night is not None
        assert night.attempts == 2

    def test_a_paused_schedule_fires_nothing_and_makes_up_for_nothing(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        store.pause("nightly")
        clock.forward(days=2)
        fire_due(claimant)
        store.resume("nightly")
        fire_due(claimant)
        assert states(database) == []
        clock.forward(days=1)
        fire_due(claimant)
        assert states(database) == ["QUEUED"]

    def test_a_schedule_changed_meanwhile_is_looked_at_again(
        self, database: Database, clock: HandClock, tmp_path: Path
    ) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        seen = find_schedule(database, "nightly")
        store.add("nightly", definition(tmp_path, cron="0 5 * * *"), replace=True)
        clock.forward(days=1)
        assert not store.fire(seen, clock.time, {clock.time: (FiringState.QUEUED, "")})
        assert states(database) == []

    def test_removing_keeps_the_history(self, database: Database, clock: HandClock, tmp_path: Path) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        clock.forward(days=1)
        fire_due(claimant)
        store.remove("nightly")
        assert list_schedules(database) == []
        assert states(database) == ["SKIPPED"]
        with pytest.raises(StorageError, match="no schedule 'nightly'; there is: none"):
            store.remove("nightly")

    def test_an_existing_schedule_is_changed_only_on_request(self, database: Database, tmp_path: Path) -> None:
        claimant = Claimant(database)
        store = add_schedule(claimant, tmp_path)
        with pytest.raises(StorageError, match="exists already; change it with --replace"):
            store.add("nightly", definition(tmp_path))

    def test_a_regression_may_be_accepted(self, database: Database, clock: HandClock, tmp_path: Path) -> None:
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, tmp_path)
        with pytest.raises(StorageError, match="nothing to accept"):
            store.accept("nightly")
        night = store.take("nightly", store.fire_by_hand("nightly").slot)
        assert night is not None
        store.end(night, FiringState.REGRESSION, "worse", exit_code=6, value=0.5)
        assert store.accept("nightly").state is FiringState.NO_IMPROVEMENT


# The real clock of each database, two processes, one slot a minute: what each has run goes to a common file.
RACER = """\
import sys, time
from datetime import timedelta
from automl.schedule.due import fire_due
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState
from automl.storage.schedules import ScheduleStore
from automl.storage.sql import open_database

url, ledger, ahead = sys.argv[1], sys.argv[2], float(sys.argv[3])
with open_database(url, create=False) as database:
    real = Claimant(database)
    base, began = real.now(), time.monotonic()

    def fast():  # 10 minutes a second, equal in both processes up to a little
        return base + timedelta(seconds=ahead + 600 * (time.monotonic() - began))

    # By the other's clock, too, nobody is silent for so long that a night is taken over: half an hour of real time.
    claimant = Claimant(database, clock=fast, lease_seconds=1_000_000.0)
    store = ScheduleStore(claimant)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(40):
        fire_due(claimant)
        for name in ("a", "b"):
            while (night := store.take(name)) is not None:
                with open(ledger, "a") as file:
                    file.write(f"{name} {night.slot.isoformat()}\\n")
                store.end(night, FiringState.SUCCEEDED, "", value=1.0)
        time.sleep(0.02)
"""


def test_two_processes_run_no_slot_twice(url: str, tmp_path: Path) -> None:
    with open_database(url, create=False) as database:
        claimant = Claimant(database)
        for name in ("a", "b"):
            add_schedule(
                claimant, tmp_path, name, cron="* * * * *", timezone="UTC", overlap="queue", catch_up_seconds=None
            )
        ledger = tmp_path / "ledger"
        command = [sys.executable, "-c", RACER, url, str(ledger)]
        racers = [
            subprocess.Popen([*command, ahead], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for ahead in ("0", "0.5")
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        assert [racer.wait(timeout=600) for racer in racers] == [0, 0]
        for racer in racers:
            for stream in (racer.stdin, racer.stdout):
                assert stream is not None
                stream.close()
        ran = ledger.read_text(encoding="utf-8").splitlines()
        assert ran
        assert [line for line, count in Counter(ran).items() if count > 1] == []
        for name in ("a", "b"):
            nights = list_firings(database, name)
            slots = [night.slot for night in reversed(nights)]
            assert slots == due_slots("* * * * *", "UTC", slots[0] - timedelta(minutes=1), slots[-1])
            done = {f"{name} {night.slot.isoformat()}" for night in nights if night.state is FiringState.SUCCEEDED}
            assert done == {line for line in ran if line.startswith(name)}
            assert all(night.attempts <= 1 for night in nights)


class TestSubmissions:
    @pytest.mark.parametrize(("studies", "kept"), [(["one"] * 8, 1), ([f"study {n}" for n in range(8)], 3)])
    def test_of_those_submitted_at_once_no_more_are_queued_than_may_be(
        self, studies: list[str], kept: int, url: str
    ) -> None:
        together = threading.Barrier(len(studies))

        def ask(study: str) -> str:
            with open_database(url, create=False) as mine:
                together.wait()
                try:
                    return submit(mine, study, "version: 1", "somebody", most=3).study
                except SubmissionRefused as refused:
                    return type(refused).__name__

        with ThreadPoolExecutor(len(studies)) as crowd:
            answers = Counter(crowd.map(ask, studies))
        with open_database(url, create=False) as database:
            queued = [each.study for each in list_submissions(database)]
        assert len(queued) == len(set(queued)) == kept
        refusal = "SubmissionRefused" if kept == 1 else "QueueFull"
        assert answers == Counter([*queued, *[refusal] * (len(studies) - kept)])

    # Whoever writes past `submit` meets the same rule.
    def test_the_database_itself_refuses_two_open_ones_of_a_study(self, url: str) -> None:
        with open_database(url, create=False) as database:
            submit(database, "one", "version: 1", "somebody")
            copy = select(*[literal("x").label("id") if c.name == "id" else c for c in submissions.c])
            statement = submissions.insert().from_select(list(submissions.c.keys()), copy)
            with pytest.raises(StorageError, match=r"(?i)unique"), database.writing("submit") as connection:
                connection.execute(statement)

    def test_they_are_taken_once_and_in_order(self, url: str) -> None:
        with open_database(url, create=False) as database:
            for number in range(3):
                submit(database, f"study {number}", "version: 1", "somebody")
            stores = [SubmissionStore(Claimant(database)) for _ in range(2)]
            taken = [stores[number % 2].take() for number in range(4)]
            assert [each.study if each else None for each in taken] == ["study 0", "study 1", "study 2", None]
            first = taken[0]
            assert first is not None
            assert not stores[1].end(first, SubmissionState.DONE, "not mine", 0)
            assert stores[0].end(first, SubmissionState.DONE, "done", 0)
            assert find_submission(database, first.id).state is SubmissionState.DONE

    def test_a_cancelled_one_is_not_started_and_a_running_one_is_lost_to_its_owner(self, url: str) -> None:
        with open_database(url, create=False) as database:
            store = SubmissionStore(Claimant(database))
            queued = submit(database, "a", "version: 1", "somebody")
            assert cancel(database, queued.id).state is SubmissionState.CANCELLED
            assert store.take() is None
            running = submit(database, "b", "version: 1", "somebody")
            assert store.take() is not None
            cancel(database, running.id)
            assert not store.renew(running)
            assert not store.end(running, SubmissionState.DONE, "late", 0)
            assert {each.state for each in list_submissions(database)} == {SubmissionState.CANCELLED}
            with pytest.raises(StorageError, match="no submission 'x'"):
                cancel(database, "x")

    def test_schedulers_are_heard_of_until_they_sign_off(self, url: str) -> None:
        with open_database(url, create=False) as database:
            store = SubmissionStore(Claimant(database))
            store.beat([])
            store.beat(["night 2026-08-03 of nightly"])
            (row,) = list_schedulers(database)
            assert list(row.running) == ["night 2026-08-03 of nightly"]
            assert row.seconds_silent >= 0
            store.sign_off()
            assert list_schedulers(database) == []


def test_at_most_one_of_many_slots_runs() -> None:
    start = datetime(2026, 8, 3, tzinfo=UTC)
    schedule = Schedule(
        name="n",
        cron="* * * * *",
        timezone="UTC",
        space_text="",
        folder="/",
        fired_until=start,
        created_at=start,
        updated_at=start,
    )
    slots = [start + timedelta(minutes=number) for number in range(1, 60)]
    for is_busy in (False, True):
        found = settle(schedule, slots, slots[-1], is_busy=is_busy)
        assert list(found) == slots
        ran = [state for state, _ in found.values() if state is FiringState.QUEUED]
        assert len(ran) == (0 if is_busy else 1)
