"""A process that stops asking for batches is ended, and says where it hung."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from automl import watchdog

PROGRAM = """
import sys, threading, time
from pathlib import Path
from automl import watchdog
from automl.tasks.batches import batch_rows

watchdog._BETWEEN = 0.1
threading.Thread(target=threading.Event().wait, args=(600,), daemon=True).start()

def hang():
    threading.Event().wait(600)

limit = float(sys.argv[4])
with watchdog.watched(limit, Path(sys.argv[1])):
    for step in range(int(sys.argv[2])):
        batch_rows(0, step, 4, 20)
        time.sleep(0.25)
    if sys.argv[3] == "hang":
        hang()
time.sleep(limit + 0.5)
print("ended by itself")
"""


def run(traces: Path, steps: int, then: str, limit: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(traces), str(steps), then, str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_process_that_hangs_is_ended_and_its_call_is_known(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    done = run(traces, 2, "hang", 2.0)
    assert (done.returncode, done.stdout) == (1, "")
    assert watchdog.where_it_hung(traces).startswith('File "')
    assert " in wait" in watchdog.where_it_hung(traces)
    assert "in hang" in traces.read_text(encoding="utf-8")


def test_one_that_goes_on_or_has_left_the_block_is_not(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    done = run(traces, 12, "end", 2.5)
    assert (done.returncode, done.stdout) == (0, "ended by itself\n"), done.stderr
    assert not traces.exists()


@pytest.mark.parametrize("text", [None, "", "Thread 0x0000000000000001\n", "Thread 0x01\nThread 0x01 (most recent"])
def test_traces_that_say_nothing_are_no_error(tmp_path: Path, text: str | None) -> None:
    traces = tmp_path / "traces"
    if text is not None:
        traces.write_text(text, encoding="utf-8")
    assert watchdog.where_it_hung(traces) == ""


def test_nobody_is_watched_unasked() -> None:
    watchdog.beat()
