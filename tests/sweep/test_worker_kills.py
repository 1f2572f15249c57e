"""One worker, killed again and again in a search: every trial ends once, with the curve it would have had."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest

from automl.packed.kernels import works
from automl.space.load import load_space
from automl.sweep.run import run_sweep
from tests.faults.kill import WORKER_TITLES, title
from tests.sweep.test_killed_search import CURVES, await_measurements, finish, marked, rows, start
from tests.sweep.tiny_world import make_world

TRIALS, STEPS, SLOTS = 8, 60, 4
MEASUREMENTS = TRIALS * STEPS // 5
ATTEMPTS = "SELECT trial, state FROM automl_attempts ORDER BY trial"


def kill_worker(tag: str, before: set[int]) -> int:
    """SIGKILL the worker that is not one of `before`; its process id."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for process in marked(tag):
            if process.pid not in before and title(process).startswith(WORKER_TITLES):
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
                return process.pid
        time.sleep(0.05)
    raise AssertionError("no living worker")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.full  # scripts/faults --ci kills workers too
@pytest.mark.parametrize("kills", [2, 5])
def test_kills_of_a_live_worker_change_no_curve_and_blame_no_trial(
    tmp_path: Path, shared_cache: Path, kills: int
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for folder, executor in ((calm, "inline"), (killed, "ray")):
        folder.mkdir()
        make_world(folder, trials=TRIALS, steps=STEPS, executor=executor, slots=SLOTS)
    with contextlib.chdir(calm):
        expected = run_sweep(load_space(calm / "space.yaml"), shared_cache).as_dict()

    tag = uuid.uuid4().hex
    process = start(killed, shared_cache, tag)
    victims: set[int] = set()
    for kill in range(kills):
        # In the first half: who kills may be slow, and the search must not end before.
        await_measurements(killed, 3 + kill * (MEASUREMENTS // 2) // kills, process)
        victims.add(kill_worker(tag, victims))
    outcome = finish(process)
    assert len(victims) == kills

    assert outcome["counts"] == expected["counts"] == {"RUNNING": 0, "COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    assert outcome["best"]["params"] == expected["best"]["params"]
    tolerance = 0.0 if works("onednn-fp32") else 1e-6  # torch's own kernels differ with the number of rows
    for one, other in zip(rows(killed, CURVES), rows(calm, CURVES), strict=True):
        assert one[:3] == other[:3]
        assert one[3] == pytest.approx(other[3], rel=tolerance, abs=0.0)
    attempts = rows(killed, ATTEMPTS)
    assert [trial for trial, state in attempts if state == "SUCCEEDED"] == list(range(TRIALS))
    assert {state for _, state in attempts} == {"SUCCEEDED", "LOST"}
    assert kills <= sum(state == "LOST" for _, state in attempts) <= kills * SLOTS
