"""SIGINT, SIGTERM and a second driver: an orderly end within seconds, nothing left behind, and all of it resumable."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.drive import SETTINGS
from tests.faults.kill import Driver, Outcome, check
from tests.faults.scenario import stretch
from tests.faults.search import NAME, open_database, url, violations

EXECUTORS = ["inline", pytest.param("ray", marks=pytest.mark.ray)]
ENOUGH = 4


def wait_for_measurements(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 240.0
    while time.monotonic() < deadline:
        path = folder / "ledger"
        if path.exists() and path.read_text(encoding="utf-8").count("\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} measurements within 240 s")


def attempts(folder: Path) -> list[str]:
    with open_database(url(folder), create=False) as database:
        return [attempt.state.value for attempt in database.store(NAME).attempts()]


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_signal_ends_the_driver_in_order_and_the_next_one_finishes(executor: str, tmp_path: Path) -> None:
    driver = Driver(tmp_path, executor, step_seconds=0.05)
    driver.wait_until_driving()
    wait_for_measurements(tmp_path, ENOUGH)
    sent = time.monotonic()
    driver.process.send_signal(signal.SIGTERM if executor == "ray" else signal.SIGINT)
    code, errors = driver.finish()
    assert (code, errors) == (4, "")
    assert time.monotonic() - sent < 60.0 * stretch()
    assert driver.orphans() == []
    assert "INTERRUPTED" in attempts(tmp_path)
    assert not {"RUNNING", "LOST"} & set(attempts(tmp_path))
    assert violations(tmp_path, SETTINGS, finished=False) == []
    resumed = Driver(tmp_path, "inline", step_seconds=0.0)
    assert resumed.finish() == (0, "")
    assert check(tmp_path, Outcome(seed=0, starts=1, kills=["signal"])) == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_second_signal_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "ray", step_seconds=60.0)
    driver.wait_until_driving()
    deadline = time.monotonic() + 240.0
    while not driver.workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3.0)  # they are in the middle of a step, for whose end the orderly stop waits 15 s
    sent = time.monotonic()
    while driver.process.poll() is None and time.monotonic() - sent < 10.0 * stretch():
        driver.process.send_signal(signal.SIGINT)  # two that come before the first is handled are one
        time.sleep(0.2)
    assert driver.process.poll() is not None
    assert driver.finish() == (4, "")
    assert driver.orphans() == []


@pytest.mark.slow
def test_a_second_driver_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    first = Driver(tmp_path, "inline", step_seconds=0.5)  # it trains for minutes, however slowly the second one starts
    first.wait_until_driving()
    began = time.monotonic()
    code, errors = Driver(tmp_path, "inline", step_seconds=0.0).finish()
    assert code == 3
    assert re.match(rf"StudyBusyError: .*process {first.process.pid} on ", errors)
    assert "Traceback" not in errors
    assert time.monotonic() - began < 60.0 * stretch()
    first.process.send_signal(signal.SIGTERM)
    assert first.finish() == (4, "")
