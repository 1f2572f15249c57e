"""Real, tiny sweeps, night after night, each verified, by a scheduler that is a process: after downtime, across a
change of the clocks, and with spoilt data.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from automl.schedule.notify import COMMANDS_VARIABLE
from automl.schedule.options import ScheduleOptions
from automl.space.load import DATABASE_VARIABLE
from automl.storage.claims import Claimant
from automl.storage.invariants import check
from automl.storage.schedules import list_firings
from automl.storage.sql import Database, open_database
from automl.storage.submissions import list_schedulers
from automl.storage.verification import latest
from tests.schedule.drive_scheduler import set_clock
from tests.schedule.scheduling import HandClock, add_schedule, space_of, states
from tests.sweep.tiny_world import make_world

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path) -> str:
    text = make_world(tmp_path, trials=2, steps=60).read_text(encoding="utf-8")
    text = text.replace("automatic: false", "automatic: false, seeds: 3, squeeze: false")
    return text + "enqueue: [{rank: 8, learning_rate: 0.03}]\n"  # learns these sentences wholly


def spoil(data: Path) -> None:
    """Give every example a label at random: nothing can be learnt any more."""
    generator = random.Random(1)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    labels = [row["label"] for row in rows]
    generator.shuffle(labels)
    lines = [json.dumps({**row, "label": label}) for row, label in zip(rows, labels, strict=True)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where a notifier's command writes what it is told; the folder of commands is beside it."""
    told, folder = tmp_path / "told", tmp_path / "commands"
    folder.mkdir(mode=0o700)
    for name, line in (("fail", "exit 1"), ("tell", f"exec tee -a {told}")):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o700)
    return told


class Nights:
    """A scheduler's process, and the time it goes by."""

    def __init__(self, database: Database, url: str, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._environment = {**os.environ, DATABASE_VARIABLE: url, COMMANDS_VARIABLE: str(folder / "commands")}
        self.process: psutil.Popen | None = None

    def start(self) -> None:
        """Start it, at the time that is set."""
        with (self._folder / "scheduler.log").open("ab") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "tests.schedule.drive_scheduler", str(self._folder)],
                cwd=_ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def come(self, moment: datetime) -> None:
        """Let it become that time, and everything happen that is due then."""
        for second in (0, 1):  # when the second one is seen, all of the first has been looked after
            at = moment + timedelta(seconds=second)
            set_clock(self._folder, at)
            self._wait(lambda at=at: any(each.seen_at >= at for each in list_schedulers(self._database)))
        self._wait(lambda: "QUEUED" not in states(self._database) and "RUNNING" not in states(self._database))

    def end(self, *, kill: bool = False) -> int | None:
        """Its exit code."""
        if self.process is None:
            return None
        (self.process.kill if kill else self.process.terminate)()
        code: int = self.process.wait(timeout=240)
        self.process = None
        return code

    def _wait(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + 600
        while not done():
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All that are at work on this database."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(DATABASE_VARIABLE) == self._environment[DATABASE_VARIABLE]:
                    found.append(process)
        return found

    def said(self) -> str:
        """Its log."""
        return (self._folder / "scheduler.log").read_text(encoding="utf-8")


@pytest.fixture
def nights(database: Database, sqlite_url: str, tmp_path: Path) -> Iterator[Nights]:
    made = Nights(database, sqlite_url, tmp_path)
    yield made
    made.end(kill=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_nights(
    sqlite_url: str, database: Database, world: str, told: Path, nights: Nights, tmp_path: Path
) -> None:
    # 2026-10-25: Berlin puts its clocks back at 03:00; 02:30 is shown twice.
    begin = datetime(2026, 10, 21, 12, tzinfo=UTC)
    options = ScheduleOptions(
        noise=0.05,
        verify=True,
        notify=("command:fail", "command:tell"),
        keep_artifacts=1,
    )
    clock = Claimant(database, clock=HandClock(begin))
    add_schedule(clock, tmp_path, space_text=world, cron="30 2 * * *", options=options)
    set_clock(tmp_path, begin)
    nights.start()
    nights.come(datetime(2026, 10, 22, 0, 31, tzinfo=UTC))  # on time
    assert nights.end(kill=True) == -9
    set_clock(tmp_path, datetime(2026, 10, 24, 6, 0, tzinfo=UTC))  # it is down for one slot, and late for the next
    nights.start()
    nights.come(datetime(2026, 10, 24, 6, 1, tzinfo=UTC))
    spoil(tmp_path / "data.jsonl")
    nights.come(datetime(2026, 10, 25, 0, 31, tzinfo=UTC))  # 02:31 for the first time
    nights.come(datetime(2026, 10, 25, 1, 31, tzinfo=UTC))  # 02:31 for the second time: nothing is due
    assert nights.end() == 0
    last, second, missed, first = list_firings(database)
    assert states(database)[1] == "MISSED"
    assert missed.study is None
    assert [night.study for night in (first, second, last)] == [
        "nightly-20261022-0230",
        "nightly-20261024-0230",
        "nightly-20261025-0230",
    ]
    assert first.state == "SUCCEEDED"
    assert second.state in ("SUCCEEDED", "NO_IMPROVEMENT")
    # The second night began with the first one's best, trained it again, and was held against it.
    assert second.comparison is not None
    assert second.comparison["previous_study"] == first.study
    assert second.comparison["re_evaluated"] is not None
    assert second.comparison["same_data"] is True
    assert second.comparison["same_model"] is True
    # Every winner was verified on test rows; they are what counts, paired by seed while the rows are the same.
    assert (second.comparison["basis"], "paired by seed" in second.comparison["noise_rule"]) == ("verification", True)
    # The spoilt data are noticed.
    assert (last.state, last.exit_code) == ("REGRESSION", 6)
    assert last.comparison is not None
    assert (last.comparison["basis"], last.comparison["same_data"]) == ("verification", False)
    assert "the data changed" in last.message
    # A notifier that fails changes nothing; the other one was told of what went wrong, and only of that.
    stories = [json.loads(line) for line in told.read_text(encoding="utf-8").replace("}{", "}\n{").splitlines()]
    assert [story["state"] for story in stories] == ["MISSED", "REGRESSION"]
    # Files stay of the last night, the best one and the last successful one.
    output = tmp_path / "automl-output"
    best = max((second, first), key=lambda night: night.value or 0.0)  # the latest of equals
    kept = {str(night.study) for night in (second, last, best)}
    assert {path.name for path in output.iterdir()} == kept
    assert space_of(output / str(last.study))["search"]["warm_start"] == second.study  # type: ignore[index]
    with open_database(sqlite_url, create=False) as fresh:
        assert [check(fresh, study, finished=True) for study in sorted(kept)] == [[]] * len(kept)
        assert all(latest(fresh, study, done=True) is not None for study in kept)
    assert nights.processes() == []
