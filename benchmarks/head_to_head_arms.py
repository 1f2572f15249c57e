"""Running one search of `head_to_head` as commands of its own until the time is over, and reading what it has found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]  # it has no annotations

from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from automl.trial import TrialState
from benchmarks.head_to_head_world import STUDY, World, edited
from benchmarks.measure import ROOT

OURS = "ours"
OTHERS: dict[str, tuple[str, ...]] = {
    "random": ("benchmarks.baselines.search_tune", "random"),
    "ray_asha": ("benchmarks.baselines.search_tune",),
    "trainer_median": ("benchmarks.baselines.search_trainer",),
    "syne_asha": ("benchmarks.baselines.search_syne",),
}
"""Arms that are not ours: name -> module, and what it is told beside the world."""

ARMS = (OURS, *OTHERS)
SYNE = "syne_asha"

_MANY = 1000
"""Trials that ours is given in place of those in the file: time is what ends every arm."""

_GRACE = 60.0
"""Seconds that an arm has to end by itself once the time is over. What it finds in them does not count."""


class Terms(NamedTuple):
    """What every search is given. trials: after so many it ends; 0 = time alone ends it. python: for syne-tune."""

    seconds: float
    workers: int
    threads: int
    trials: int
    python: str


class Seen(NamedTuple):
    """What an arm could have answered with. at: seconds since its start. drawn: the point of the space."""

    at: float
    value: float
    drawn: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One search. touched: trials that were begun. incumbents: each better than all before. seconds: until its end."""

    touched: int
    incumbents: tuple[Seen, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "incumbents": [each._asdict() for each in self.incumbents]}


def run_arm(arm: str, world: World, folder: Path, *, seed: int, terms: Terms, tick: Callable[[], None]) -> Found:
    """Search in an empty folder with empty caches. The clock starts with the first process; tick: called all the while.

    Raises RuntimeError if a command fails by itself.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.time()
    watch = _Watch(folder, _environment(arm, folder, terms), began + terms.seconds, tick)
    if arm == OURS:
        _search(world, folder, seed, terms, watch)
    else:
        document = {
            **world.document(),
            "seed": seed,
            "deadline": began + terms.seconds,
            "workers": terms.workers,
            "threads": terms.threads,
            "trials": terms.trials,
            "output": str(folder),
            "results": str(folder / "results.jsonl"),
        }
        (folder / "world.json").write_text(json.dumps(document), encoding="utf-8")
        module, *rest = OTHERS[arm]
        watch.run([terms.python if arm == SYNE else sys.executable, "-m", module, "world.json", *rest])
    seconds = time.time() - began
    touched, seen = _ours(folder) if arm == OURS else _theirs(folder)
    in_time = [each._replace(at=each.at - began) for each in seen if each.at - began <= terms.seconds]
    return Found(
        touched=sum(at - began <= terms.seconds for at in touched),
        incumbents=tuple(incumbents(in_time)),
        seconds=min(seconds, terms.seconds),
    )


def _search(world: World, folder: Path, seed: int, terms: Terms, watch: _Watch) -> None:
    """Begin as a user does: `automl init`, the rows put in, `automl search`."""
    automl = [sys.executable, "-m", "automl.cli.main"]
    watch.run([*automl, "init", world.model, world.files["train"], "--study", STUDY, "-o", "space.yaml"])
    path = folder / "space.yaml"
    path.write_text(edited(path.read_text(encoding="utf-8"), world, seed), encoding="utf-8")
    left = max(1, round(watch.deadline - time.time()))
    trials = ["--trials", str(terms.trials or _MANY)]
    watch.run([*automl, "search", "space.yaml", "--no-verify", "--time", f"{left}s", *trials])


@dataclass(frozen=True, slots=True)
class _Watch:
    """Runs commands in the folder and ends them when the time is over. deadline: in seconds since 1970."""

    folder: Path
    environment: Mapping[str, str]
    deadline: float
    tick: Callable[[], None]

    def run(self, command: Sequence[str]) -> None:
        """Raises RuntimeError with the end of its output if the command fails before the time is over."""
        log = self.folder / "output.txt"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                while process.poll() is None and time.time() < self.deadline:
                    self.tick()
                    time.sleep(0.2)
                code = process.poll()
            finally:
                _end(process)
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command[1:])} ended with {code}:\n{tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end if it has not, and kill what is left of it and of all that it has started."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()  # does nothing to another process that has its number by now


def _environment(arm: str, folder: Path, terms: Terms) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"AUTOML_CACHE": str(folder / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"SYNETUNE_FOLDER": str(folder / "syne-tune")}
    environment.pop("AUTOML_DB_URL", None)
    environment.pop("OMP_NUM_THREADS", None)
    if arm != OURS:
        environment["OMP_NUM_THREADS"] = str(terms.threads)
    return environment


def incumbents(seen: Sequence[Seen]) -> Iterator[Seen]:
    """Those that were better than all before them, in the order of time."""
    best = float("-inf")
    for each in sorted(seen, key=lambda one: one.at):
        if each.value > best:
            best = each.value
            yield each


def _theirs(folder: Path) -> tuple[list[float], list[Seen]]:
    """Every evaluation counts, also of a trial that was stopped. Times are since 1970."""
    path = folder / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    begun = [line["at"] for line in lines if line["value"] is None]
    return begun, [Seen(line["at"], line["value"], line["drawn"]) for line in lines if line["value"] is not None]


def _ours(folder: Path) -> tuple[list[float], list[Seen]]:
    """What `automl best` would have said: trials that were complete. Times are since 1970."""
    path = folder / "automl.db"
    if not path.exists():
        return [], []
    with open_database(f"sqlite:///{path}", create=False, read_only=True) as database:
        begun: dict[int, float] = {}
        ended: dict[int, float] = {}
        for attempt in database.store(STUDY).attempts():
            begun.setdefault(attempt.trial, attempt.started_at.timestamp() if attempt.started_at else 0.0)
            if attempt.ended_at is not None:
                ended[attempt.trial] = attempt.ended_at.timestamp()
        rows = [row for row in list_trials(database, STUDY) if row.state is TrialState.COMPLETE]
    found = [Seen(ended[row.number], row.value, row.params) for row in rows if row.value is not None]
    return list(begun.values()), found
