"""A scheduler survives whatever its sweeps do, and whatever is done to it, and loses no night."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from automl.schedule.daemon import Scheduler, Settings
from automl.schedule.job import Place, is_worth_retrying
from automl.schedule.options import ScheduleOptions
from automl.space.load import load_space
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState, SubmissionState
from automl.storage.schedules import ScheduleStore, list_firings
from automl.storage.sql import Database
from automl.storage.submissions import cancel, find_submission, list_schedulers, submit
from automl.storage.url import absolute_url
from tests.databases import free_port
from tests.schedule.scheduling import (
    ONE_TRIAL,
    SPACE,
    HandClock,
    add_schedule,
    cut_short,
    plan_values,
    space_of,
    states,
    tick_until,
)

MakePlace = Callable[[str], Place]

SLEEPER = "import time, pathlib\nprint('asleep', flush=True)\ntime.sleep(600)\n"


def has_ended(pid: int) -> bool:
    """Whether a process has ended; whoever inherits orphans here may never reap it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def scheduler(database: Database, clock: HandClock) -> Iterator[Callable[[Place], Scheduler]]:
    """Makes schedulers; their processes are gone afterwards."""
    made: list[Scheduler] = []

    def make(place: Place) -> Scheduler:
        made.append(Scheduler(Claimant(database, clock=clock), place, Settings(poll_seconds=0.05)))
        return made[-1]

    yield make
    for each in made:
        pids = each.pids
        each.leave()
        assert not any(psutil.pid_exists(pid) for pid in pids)


def test_nights_are_compared_with_the_last_successful_one(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    plan_values(tmp_path, 0.80, 0.85, 0.855, 0.70, 0.86)
    add_schedule(Claimant(database, clock=clock), tmp_path)
    one = scheduler(place(ONE_TRIAL))
    for _ in range(5):
        clock.forward(days=1)
        one.tick()
        tick_until(one.tick, lambda: not one.running)
    # 10,000 validation rows: noise is about 0.01. The regression is not what the last night is compared with.
    assert states(database) == ["SUCCEEDED", "SUCCEEDED", "NO_IMPROVEMENT", "REGRESSION", "NO_IMPROVEMENT"]
    regression = list_firings(database)[1]
    assert (regression.exit_code, regression.value) == (6, 0.70)
    assert regression.comparison is not None
    assert regression.comparison["previous_study"] == "nightly-20260806-0200"
    assert regression.comparison["re_evaluated"] == 0.70
    assert "worse: accuracy 0.7000 against 0.8550 of nightly-20260806-0200" in regression.message
    last = list_firings(database)[0]
    assert last.comparison is not None
    assert last.comparison["previous_study"] == "nightly-20260806-0200"
    # Warm-started from the night before, and after the regression from the last good one.
    begun = [space_of(tmp_path / "automl-output" / str(night.study))["search"] for night in list_firings(database)]
    assert [search.get("warm_start") for search in reversed(begun)] == [  # type: ignore[attr-defined]
        None,
        "nightly-20260804-0200",
        "nightly-20260805-0200",
        "nightly-20260806-0200",
        "nightly-20260806-0200",
    ]


# It may take minutes, and the leases of what runs meanwhile are renewed by the scheduler's own thread.
def test_older_nights_are_removed_beside_what_runs(
    database: Database,
    clock: HandClock,
    place: MakePlace,
    scheduler: Callable[[Place], Scheduler],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="automl")
    plan_values(tmp_path, 0.80, 0.85, 0.90)
    add_schedule(Claimant(database, clock=clock), tmp_path, options=ScheduleOptions(keep_artifacts=1, keep_nights=1))
    one = scheduler(place(ONE_TRIAL))
    for _ in range(3):
        clock.forward(days=1)
        one.tick()
        tick_until(one.tick, lambda: not one.running)

    def removing() -> list[str]:
        """Threads that said so, which they do once the study is gone."""
        said = [record for record in caplog.records if record.getMessage().startswith("removed study ")]
        return [str(record.threadName).rpartition("_")[0] for record in said]

    tick_until(one.tick, lambda: len(removing()) == 2)
    assert removing() == ["tidy", "tidy"]
    assert len(database.study_names()) == 1


@pytest.mark.parametrize(
    ("wanted", "written"),
    [(False, ""), (False, "verify: {automatic: true, seeds: 3}\n"), (True, "verify: {seeds: 3}\n")],
)
def test_whether_a_night_is_verified_is_said_by_its_schedule_alone(
    wanted: bool,
    written: str,
    database: Database,
    clock: HandClock,
    place: MakePlace,
    scheduler: Callable[[Place], Scheduler],
    tmp_path: Path,
) -> None:
    plan_values(tmp_path, 0.80)
    calls = tmp_path / "calls"
    add_schedule(
        Claimant(database, clock=clock), tmp_path, space_text=SPACE + written, options=ScheduleOptions(verify=wanted)
    )
    one = scheduler(place(f"import sys\nprint(sys.argv[1:], file=open({str(calls)!r}, 'a'))\n{ONE_TRIAL}"))
    clock.forward(days=1)
    tick_until(one.tick, lambda: states(database) == ["SUCCEEDED"])
    space = tmp_path / "automl-output" / "nightly-20260804-0200" / "space.yaml"
    # One process, which does what `automl search` does after a search: what the file says.
    assert calls.read_text().splitlines() == [str(["search", str(space)])]
    found = load_space(space).verify
    assert (found.automatic, found.seeds) == (wanted, 3 if written else 4)


def test_a_failed_night_is_not_compared_with(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    add_schedule(Claimant(database, clock=clock), tmp_path)
    text = '{"level": "ERROR", "message": "space.yaml:3: model: is missing"}'  # as with --log-format json
    one = scheduler(place(f"import sys\nprint({text!r}, file=sys.stderr)\nsys.exit(2)\n"))
    clock.forward(days=1)
    tick_until(one.tick, lambda: states(database) == ["FAILED"])
    (night,) = list_firings(database)
    assert (night.exit_code, night.message, night.attempts) == (2, "space.yaml:3: model: is missing", 1)


def test_a_sweep_that_crashes_is_tried_again_and_given_up_in_the_end(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    add_schedule(Claimant(database, clock=clock), tmp_path)
    one = scheduler(place("import os\nprint('so far', flush=True)\nos.abort()\n"))
    clock.forward(days=1)
    tick_until(one.tick, lambda: states(database) == ["QUEUED"] and list_firings(database)[0].attempts == 1)
    assert one.running == []  # it waits
    clock.forward(seconds=40)
    tick_until(one.tick, lambda: states(database) == ["QUEUED"] and list_firings(database)[0].attempts == 2)
    clock.forward(seconds=80)
    tick_until(one.tick, lambda: states(database) == ["FAILED"])
    (night,) = list_firings(database)
    assert (night.exit_code, night.attempts) == (-signal.SIGABRT, 3)
    assert night.message == "ended by signal 6: so far"


# Two of six trials are no result: a night is not judged by them, and a submission is not done.
@pytest.mark.parametrize("reason", ["interrupted", "stopped"])
def test_what_was_interrupted_is_continued_and_judged_by_nobody(
    reason: str,
    database: Database,
    clock: HandClock,
    place: MakePlace,
    scheduler: Callable[[Place], Scheduler],
    tmp_path: Path,
) -> None:
    text = "version: 1\nstudy: asked\nmodel: ./m\ntask: {type: classification, data: ./d.jsonl}\n"
    add_schedule(Claimant(database, clock=clock), tmp_path)
    clock.forward(days=1)
    asked = submit(database, "asked", text, "somebody")
    one = scheduler(place(cut_short(reason, 0.1, 0.2)))

    def waits() -> bool:
        (night,), submission = list_firings(database), find_submission(database, asked.id)
        said = "interrupted, it is continued: stopped (Ray ended unexpectedly) after 2 of 6 trials"
        return [(each.state, each.message) for each in (night, submission)] == [("QUEUED", said)] * 2

    tick_until(one.tick, waits)
    # Trials ended meanwhile, so the start does not count; one without any is given up in the end.
    assert [each.attempts for each in (*list_firings(database), find_submission(database, asked.id))] == [0, 0]
    two = scheduler(place(cut_short(reason)))
    for _ in range(3):
        clock.forward(seconds=31)
        tick_until(two.tick, lambda: not two.running)
    tick_until(two.tick, lambda: states(database) == ["FAILED"])
    (night,) = list_firings(database)
    assert (night.exit_code, night.value) == (4, None)
    assert night.message.startswith("given up: it was interrupted 3 times: stopped (Ray ended unexpectedly)")


def test_a_search_whose_own_time_is_over_is_a_finished_night(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    add_schedule(Claimant(database, clock=clock), tmp_path)
    clock.forward(days=1)
    one = scheduler(place(cut_short("time", 0.7, 0.8)))
    tick_until(one.tick, lambda: states(database) == ["SUCCEEDED"])
    assert list_firings(database)[0].value == 0.8


# While the head of the cluster is away nothing is started that could only fail.
def test_work_waits_for_the_cluster_that_it_joins(
    database: Database,
    clock: HandClock,
    place: MakePlace,
    scheduler: Callable[[Place], Scheduler],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    text = "version: 1\nstudy: asked\nmodel: ./m\ntask: {type: classification, data: ./d.jsonl}\n"
    address = f"127.0.0.1:{free_port()}"
    joining = SPACE.replace("{executor: inline}", f'{{executor: ray, address: "{address}"}}')
    claimant = Claimant(database, clock=clock)
    add_schedule(claimant, tmp_path, "joining", space_text=joining)
    add_schedule(claimant, tmp_path, "alone")
    asked = submit(database, "asked", text, "somebody")
    clock.forward(days=1)
    one = scheduler(replace(place("raise SystemExit(2)"), address=address))
    for _ in range(3):
        tick_until(one.tick, lambda: not one.running)
    assert states(database, "alone") == ["FAILED"]
    waiting = [*list_firings(database, "joining"), find_submission(database, asked.id)]
    assert [(each.state, each.attempts) for each in waiting] == [("QUEUED", 0)] * 2
    assert len([record for record in caplog.records if "no Ray cluster answers" in record.getMessage()]) == 1
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        tick_until(one.tick, lambda: states(database, "joining") == ["FAILED"])
        tick_until(one.tick, lambda: find_submission(database, asked.id).state == "FAILED")


@pytest.mark.parametrize(
    ("code", "joins", "again"),
    [(3, False, True), (-9, False, True), (2, True, False), (5, False, False), (5, True, True)],
)
def test_what_may_succeed_later_is_tried_again(code: int, joins: bool, again: bool) -> None:
    assert is_worth_retrying(code, joins=joins) is again


def test_a_night_whose_output_cannot_be_written_fails_and_the_scheduler_goes_on(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    (tmp_path / "automl-output/nightly-20260804-0200/search.log").mkdir(parents=True)
    add_schedule(Claimant(database, clock=clock), tmp_path)
    one = scheduler(place(SLEEPER))
    clock.forward(days=1)
    tick_until(one.tick, lambda: states(database) == ["FAILED"])
    assert list_firings(database)[0].message.endswith("search.log: cannot write: Is a directory")
    assert list_firings(database)[0].exit_code == 5


def test_a_night_is_stopped_at_its_deadline(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    add_schedule(Claimant(database, clock=clock), tmp_path, deadline_seconds=3600.0)
    one = scheduler(place(SLEEPER))
    clock.forward(days=1)
    tick_until(one.tick, lambda: bool(one.pids))
    clock.forward(hours=1, minutes=1)
    tick_until(one.tick, lambda: states(database) == ["TIMED_OUT"])
    assert list_firings(database)[0].message == "stopped at its deadline of 1 h"


def test_a_scheduler_that_is_asked_to_end_gives_its_night_back(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    add_schedule(Claimant(database, clock=clock), tmp_path)
    one = scheduler(place(SLEEPER))
    clock.forward(days=1)
    tick_until(one.tick, lambda: bool(one.pids))
    one.tick()
    assert [row.running for row in list_schedulers(database)] == [["night 2026-08-04 02:00 of nightly"]]
    (pid,) = one.pids
    one.leave()
    assert not psutil.pid_exists(pid)
    (night,) = list_firings(database)
    assert (night.state, night.attempts, night.study) == (FiringState.QUEUED, 0, "nightly-20260804-0200")
    assert list_schedulers(database) == []
    # The next scheduler continues the same study.
    plan_values(tmp_path, 0.9)
    two = scheduler(place(ONE_TRIAL))
    tick_until(two.tick, lambda: states(database) == ["SUCCEEDED"])
    assert list_firings(database)[0].study == night.study


def test_a_removed_lease_stops_the_process(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    text = "version: 1\nstudy: asked\nmodel: ./m\ntask: {type: classification, data: ./d.jsonl}\n"
    one = scheduler(place(SLEEPER))
    asked = submit(database, "asked", text, "somebody")
    tick_until(one.tick, lambda: bool(one.pids))
    (pid,) = one.pids
    cancel(database, asked.id)
    tick_until(one.tick, lambda: not one.running, most=20_000)  # noticed when the lease is renewed next
    assert not psutil.pid_exists(pid)
    assert find_submission(database, asked.id).state is SubmissionState.CANCELLED


def test_submissions_are_run(
    database: Database, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    text = "version: 1\nstudy: asked\nmodel: ./m\ntask: {type: classification, data: ./d.jsonl}\n"
    plan_values(tmp_path, 0.9)
    one = scheduler(place(ONE_TRIAL))
    good, bad = submit(database, "asked", text, "somebody"), submit(database, "bad", "version: 1\n", "somebody")
    ends = (SubmissionState.DONE, SubmissionState.FAILED)
    tick_until(one.tick, lambda: all(find_submission(database, each.id).state in ends for each in (good, bad)))
    assert find_submission(database, good.id).state is SubmissionState.DONE
    failed = find_submission(database, bad.id)
    assert failed.state is SubmissionState.FAILED
    assert failed.exit_code == 2


# Rows that were written past the API are judged as the API would have judged them.
@pytest.mark.parametrize(
    ("row", "text", "said"),
    [
        (
            "asked",
            "model: /etc/m\ntask: {type: classification, data: ./d.jsonl}\n",
            "model: a submitted sweep may only",
        ),
        ("asked", "model: ./m\ntask: {type: classification, data: ../d.jsonl}\n", "a submitted sweep may only name"),
        ("asked", "model: ./m\ntask: {type: classification, data: ./d.jsonl}\nrun: {output: /srv}\n", "run.output"),
        (
            "asked",
            "model: ./m\ntask: {type: completion, data: ./d.jsonl}\nkeep: /etc/hosts.jsonl\n",
            "keep.data.train: a submitted sweep may only name",
        ),
        ("../up", "model: ./m\ntask: {type: classification, data: ./d.jsonl}\n", "'asked' is queued as another one"),
    ],
)
def test_a_submission_is_judged_again_before_it_is_run(
    row: str,
    text: str,
    said: str,
    database: Database,
    place: MakePlace,
    scheduler: Callable[[Place], Scheduler],
    tmp_path: Path,
) -> None:
    one = scheduler(place(f"open({str(tmp_path / 'ran')!r}, 'w')"))
    asked = submit(database, row, f"version: 1\nstudy: asked\n{text}", "somebody")
    one.tick()
    found = find_submission(database, asked.id)
    assert (found.state, found.exit_code) == (SubmissionState.FAILED, 2)
    assert said in found.message
    assert not (tmp_path / "ran").exists()


def start_daemon(url: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "automl.cli.main", "scheduler", "--poll", "0.2", *options]
    environment = {**os.environ, "AUTOML_DB_URL": absolute_url(url)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


# The whole command, killed as the kernel does it while a real search runs; the next one ends the night.
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_scheduler_takes_its_sweep_along_and_the_night_is_continued(
    database: Database, sqlite_url: str, tmp_path: Path
) -> None:
    from tests.sweep.tiny_world import make_world

    space = make_world(tmp_path, trials=8, steps=40)
    claimant = Claimant(database)
    options = ScheduleOptions(warm_start=False)
    store = add_schedule(claimant, tmp_path, space_text=space.read_text(encoding="utf-8"), options=options)
    store.fire_by_hand("nightly")
    daemon = start_daemon(sqlite_url)
    try:
        assert daemon.stderr is not None
        pid = next(int(line.split("process ")[1].split()[0]) for line in daemon.stderr if "process " in line)
        log = tmp_path / "automl-output" / str(list_firings(database)[0].study) / "search.log"
        tick_until(lambda: None, lambda: log.exists() and "trial 0" in log.read_text(encoding="utf-8"), most=20_000)
    finally:
        daemon.kill()
        daemon.communicate()
    tick_until(lambda: None, lambda: has_ended(pid))  # by itself, in order
    assert states(database) == ["RUNNING"]
    second = start_daemon(sqlite_url)
    try:
        tick_until(lambda: None, lambda: states(database) == ["SUCCEEDED"], most=20_000)
    finally:
        second.send_signal(signal.SIGTERM)
        _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    (night,) = list_firings(database)
    assert night.attempts == 2
    assert len(database.studies()) == 1
    assert database.studies()[0].runs == 2
    assert list_schedulers(database)[1:] == []  # the killed one has left its row; it is forgotten in a week


def test_a_night_that_kills_every_scheduler_is_given_up(
    database: Database, clock: HandClock, place: MakePlace, scheduler: Callable[[Place], Scheduler], tmp_path: Path
) -> None:
    claimants = [Claimant(database, clock=clock) for _ in range(3)]
    add_schedule(claimants[0], tmp_path)
    clock.forward(days=1)
    one = scheduler(place(SLEEPER))
    one._fire()
    for claimant in claimants:
        claimant.process = ""  # on another machine
        assert ScheduleStore(claimant).take() is not None
        clock.time += timedelta(seconds=61)
    tick_until(one.tick, lambda: states(database) == ["FAILED"])
    assert list_firings(database)[0].message == "given up: it was started 3 times and never ended"
