"""Kill drivers and workers at random moments, continue until done, and check that nothing was lost or repeated.

    python -m tests.faults.kill --runs 10 --seed 7 --executor ray

prints one JSON object. Each run is one study: its driver (or, under Ray, one of its workers) is killed by SIGKILL
`--kills` times, started again each time, and at last left to finish.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import optuna
import psutil

from automl.trial import TrialState
from tests.faults.cluster import RayCluster
from tests.faults.drive import CAPACITY, SETTINGS
from tests.faults.scenario import stretch
from tests.faults.search import NAME, open_database, undisturbed, url, violations

WORKER_TITLES = ("ray::ResourceTrainable", "ray::TuneWorker")
"""How Ray names the processes of workers: while they train, and while it waits for them to be told to."""

ROOT = Path(__file__).resolve().parents[2]
_ORPHAN_SECONDS = 15.0
_RUN_SECONDS = 600.0


@dataclass
class Outcome:
    """What one run did, and what was wrong with it."""

    seed: int
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    attempts: int = 0
    problems: list[str] = field(default_factory=list)


class Driver:
    """A `tests.faults.drive` process and everything it starts, marked by an environment variable."""

    def __init__(self, folder: Path, executor: str, *, step_seconds: float, cluster: RayCluster | None = None) -> None:
        self.tag = uuid.uuid4().hex
        command = [sys.executable, "-m", "tests.faults.drive", str(folder), "--executor", executor]
        if cluster is not None:
            command += ["--address", cluster.address]
        self.process = subprocess.Popen(
            [*command, "--step-seconds", str(step_seconds)],
            cwd=ROOT,
            env={**os.environ, **(cluster.variables if cluster else {}), "AUTOML_RUN_ID": self.tag},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_driving(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.strip() != "driving":
            raise RuntimeError(f"driver did not start: {line!r} {self.finish()}")

    def finish(self) -> tuple[int, str]:
        """Wait for the end: exit status and standard error."""
        _, errors = self.process.communicate(timeout=_RUN_SECONDS)
        return self.process.returncode, errors

    def family(self) -> list[psutil.Process]:
        """Living processes that carry the mark."""
        return [process for process in psutil.process_iter() if is_marked(process, self.tag)]

    def workers(self) -> list[psutil.Process]:
        """Ray's worker processes that train."""
        return [process for process in self.family() if title(process).startswith(WORKER_TITLES)]

    def orphans(self) -> list[str]:
        """What is left of the family once the driver is gone and everything had time to follow it."""
        deadline = time.monotonic() + _ORPHAN_SECONDS * stretch()
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [f"{process.pid} {title(process)[:80]}" for process in left]


def run(folder: Path, executor: str, *, kills: int, seed: int, step_seconds: float = 0.04) -> Outcome:
    """One study with that many kills, and all checks after it."""
    chance, outcome, began = random.Random(seed), Outcome(seed=seed), time.monotonic()
    progress = 0
    while True:
        driver = Driver(folder, executor, step_seconds=step_seconds)
        outcome.starts += 1
        driver.wait_until_driving()
        while len(outcome.kills) < kills and driver.process.poll() is None:
            _kill(driver, chance, executor, outcome)
        code, errors = driver.finish()
        outcome.problems += [f"orphan of a driver that ended with {code}: {left}" for left in driver.orphans()]
        if "Traceback" in errors:
            outcome.problems.append(f"traceback on stderr: {errors[-1000:]}")
        done = len(_ledger(folder))
        if done < progress:
            outcome.problems.append(f"progress went back from {progress} to {done} measurements")
        progress = done
        if code == 0:
            break
        if code != -9:
            outcome.problems.append(f"driver ended with {code}: {errors[-1000:]}")
            break
    outcome.seconds = round(time.monotonic() - began, 1)
    outcome.problems += check(folder, outcome)
    return outcome


def check(folder: Path, outcome: Outcome) -> list[str]:
    """All that must hold of a finished study: invariants, budget, curves, ledger, number of attempts."""
    problems = violations(folder, SETTINGS, finished=True)
    with open_database(url(folder), create=False) as database:
        trials = optuna.load_study(study_name=NAME, storage=database.optuna_storage()).get_trials()
        store = database.store(NAME)
        stored = {(item.trial, item.step): item.metrics["loss"] for item in store.measurements()}
        attempts = store.attempts()
    outcome.states = {state: sum(trial.state.name == state for trial in trials) for state in TrialState}
    outcome.attempts = len(attempts)
    counted = outcome.states["COMPLETE"] + outcome.states["PRUNED"]
    if counted != SETTINGS.trials:
        problems.append(f"{counted} trials counted, {SETTINGS.trials} asked for")
    for trial in trials:
        curve = [(step, loss) for (number, step), loss in sorted(stored.items()) if number == trial.number]
        if trial.state.name == "PRUNED" and (not curve or curve[-1][0] >= SETTINGS.steps):
            problems.append(f"trial {trial.number} is PRUNED, but was not stopped: {curve[-1:]}")
        if trial.state.name == "COMPLETE" and curve[-1][0] != SETTINGS.steps:
            problems.append(f"trial {trial.number} is COMPLETE, but ends at {curve[-1:]}")
        if curve != sorted(trial.intermediate_values.items()):
            problems.append(f"trial {trial.number}: measurements and Optuna's values differ")
        if curve and curve != undisturbed(SETTINGS, trial.number, trial.params)[: len(curve)]:
            problems.append(f"trial {trial.number}: its curve is not the undisturbed one")
    ledger = _ledger(folder)
    outcome.acknowledged = len(ledger)
    problems += [f"acknowledged, but not in SQL: {row}" for row in ledger if stored.get((row[0], row[2])) != row[3]]
    allowed = len(trials) + len(outcome.kills) * 2 * CAPACITY
    if len(attempts) > allowed:
        problems.append(f"{len(attempts)} attempts, at most {allowed} can be explained by the kills")
    if leftover := sorted((folder / "tune").glob(".tune-*")) if outcome.starts == 1 else []:
        problems.append(f"left over: {leftover}")
    return problems


def _kill(driver: Driver, chance: random.Random, executor: str, outcome: Outcome) -> None:
    """Kill one process after a random time: while all is starting, or while it trains. Who is faster is left alone."""
    victim = chance.choice(["driver", "worker"]) if executor == "ray" else "driver"
    starting = executor == "ray" and victim == "driver" and chance.random() < 0.3
    if executor == "ray" and not starting and not _await_worker(driver):
        return
    moment = chance.uniform(0.0, 6.0 if starting else 2.0)
    try:
        driver.process.wait(timeout=moment)
        return
    except subprocess.TimeoutExpired:
        pass
    if victim == "driver":
        driver.process.kill()
        driver.process.wait()
    elif workers := driver.workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            chance.choice(sorted(workers, key=lambda process: process.pid)).kill()
    else:
        return
    phase = "start" if starting else "first worker" if executor == "ray" else "start"
    outcome.kills.append(f"{victim}, {moment:.2f} s after the {phase}")


def _await_worker(driver: Driver) -> bool:
    deadline = time.monotonic() + 240.0
    while time.monotonic() < deadline and driver.process.poll() is None:
        if driver.workers():
            return True
        time.sleep(0.2)
    return False


def _ledger(folder: Path) -> list[tuple[int, int, int, float]]:
    path = folder / "ledger"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    # A line cut short by a kill was never acknowledged.
    whole = [json.loads(line) for line in lines[:-1]]
    return [(trial, attempt, step, loss) for trial, attempt, step, loss, _ in whole]


def is_marked(process: psutil.Process, tag: str) -> bool:
    """Whether a living process carries the tag in its environment."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("AUTOML_RUN_ID") == tag
    except psutil.Error:
        return False


def title(process: psutil.Process) -> str:
    """Command line of a process, empty if it has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _runs(options: argparse.Namespace) -> Iterator[Outcome]:
    for number in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="automl-kill-") as folder:
            yield run(Path(folder), options.executor, kills=options.kills, seed=options.seed + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=2, help="kills in each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=["inline", "ray"], default="inline")
    options = parser.parse_args()
    outcomes = list(_runs(options))
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    total = sum(len(outcome.kills) for outcome in outcomes)
    report = {"executor": options.executor, "kills": total, "failed": failed, "runs": [asdict(one) for one in outcomes]}
    sys.stdout.write(json.dumps(report) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
