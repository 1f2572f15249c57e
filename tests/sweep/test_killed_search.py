"""A search with the real trainer under Ray, its worker and its driver killed: it ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from automl.packed.kernels import works
from automl.space.load import load_space
from automl.sweep.run import run_sweep
from tests.faults.kill import WORKER_TITLES, is_marked, title
from tests.sweep.tiny_world import make_world

TRIALS, STEPS = 4, 300
# Given beforehand, since a run that continues another one samples anew on purpose.
ENQUEUED = "enqueue:\n" + "".join(f"  - {{rank: {rank}, learning_rate: 0.0{rank}}}\n" for rank in (1, 2, 3, 4))
CURVES = """
    SELECT m.trial, m.step, v.metric, v.value FROM automl_measurements m
    JOIN automl_metric_values v ON v.study_name = m.study_name AND v.trial = m.trial AND v.step = m.step
    ORDER BY 1, 2, 3
"""


def start(folder: Path, cache: Path, tag: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "AUTOML_CACHE": str(cache), "AUTOML_RUN_ID": tag}
    command = [sys.executable, "-m", "automl.cli.main", "search", "space.yaml", "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out)


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    if not (folder / "automl.db").exists():
        return []
    with sqlite3.connect(folder / "automl.db") as connection:
        return connection.execute(sql).fetchall()


def await_measurements(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while len(rows(folder, "SELECT 1 FROM automl_measurements")) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"fewer than {number} measurements"
        time.sleep(0.05)


def marked(tag: str) -> list[psutil.Process]:
    """Living processes that carry the tag."""
    return [process for process in psutil.process_iter() if is_marked(process, tag)]


def await_end(tag: str) -> None:
    """Until no process carries the tag; they end by themselves."""
    deadline = time.monotonic() + 240
    while left := marked(tag):
        assert time.monotonic() < deadline, [title(process) for process in left]
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.full  # test_worker_kills kills workers, and scripts/faults --ci drivers, with the real trainer
@pytest.mark.ray
@pytest.mark.parametrize("slots", [pytest.param(1, id="solo"), pytest.param(2, id="packed")])
def test_killed_worker_and_driver_change_nothing_with_the_real_trainer(
    tmp_path: Path, shared_cache: Path, slots: int
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for folder, executor, workers in ((calm, "inline", 1), (killed, "ray", 2)):
        folder.mkdir()
        space = make_world(folder, trials=TRIALS, steps=STEPS, executor=executor, workers=workers, slots=slots)
        space.write_text(space.read_text(encoding="utf-8") + ENQUEUED, encoding="utf-8")
    with contextlib.chdir(calm):
        expected = run_sweep(load_space(calm / "space.yaml"), shared_cache).as_dict()

    tag = uuid.uuid4().hex
    process = start(killed, shared_cache, tag)
    await_measurements(killed, 20, process)
    workers = [each for each in marked(tag) if title(each).startswith(WORKER_TITLES)]
    assert workers
    with contextlib.suppress(psutil.NoSuchProcess):
        workers[0].send_signal(signal.SIGKILL)
    await_measurements(killed, len(rows(killed, "SELECT 1 FROM automl_measurements")) + 20, process)
    process.kill()
    process.communicate()
    await_end(tag)

    outcome = finish(start(killed, shared_cache, tag))
    assert outcome["counts"] == expected["counts"] == {"RUNNING": 0, "COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    assert outcome["best"]["params"] == expected["best"]["params"]
    tolerance = (
        0.0 if slots == 1 or works("onednn-fp32") else 1e-6
    )  # torch's own kernels differ with the number of rows
    for one, other in zip(rows(killed, CURVES), rows(calm, CURVES), strict=True):
        assert one[:3] == other[:3]
        assert one[3] == pytest.approx(other[3], rel=tolerance, abs=0.0)
    attempts = rows(killed, "SELECT trial, COUNT(*) FROM automl_attempts GROUP BY trial")
    assert max(count for _, count in attempts) > 1
    await_end(tag)
