"""No command is silent for long: it says what it is doing, unless something else has just been shown."""

from __future__ import annotations

import time

import pytest

from automl import progress
from automl.cli import console
from automl.cli.heartbeat import SILENCE_SECONDS, heartbeat


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_silence_is_shorter_than_fifteen_seconds() -> None:
    assert SILENCE_SECONDS + 1 < 15


def test_a_silent_command_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    steps = iter(range(1000))
    with heartbeat(["report"], silence=0.2), progress.telling(lambda: f"step {next(steps)}"):
        time.sleep(1.5)
    said = lines(capsys)
    assert len(said) >= 2
    assert "step 0 (" in said[0]
    assert "step 1 (" in said[1]


def test_without_a_line_of_its_own_it_is_still_working(capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat(["report"], silence=0.2):
        time.sleep(0.8)
    assert "still working (" in lines(capsys)[0]


def test_the_innermost_work_is_told_and_forgotten() -> None:
    with progress.telling("outer".format), progress.telling("inner".format):
        assert progress.current() == "inner"
    assert progress.current() == ""


@pytest.mark.parametrize("command", ["scheduler", "dashboard"])
def test_servers_may_be_silent(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat([command], silence=0.1):
        time.sleep(0.5)
    assert lines(capsys) == []


def test_what_is_shown_is_a_sign_of_life_too(capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat(["report"], silence=0.6):
        for number in range(6):
            time.sleep(0.2)
            console.note(f"line {number}")
    assert lines(capsys) == [f"line {number}" for number in range(6)]


def test_a_picture_that_moves_is_not_disturbed(capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat(["search"], silence=0.1), console.drawn_in_place():
        time.sleep(0.6)
    assert lines(capsys) == []
