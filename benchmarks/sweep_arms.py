"""Running one arm of `sweep_throughput` as a command of its own, and reading off what it has done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from automl.storage.base import AttemptState
from automl.storage.sql import open_database
from benchmarks.measure import ROOT, MemorySampler
from benchmarks.sweep_world import STUDY, Work, World

LONGEST_SECONDS = 4 * 3600.0

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours-fp32": {"precision": "fp32"},
    "ours-solo": {"precision": "fp32", "slots": 1},
    "ours-inline": {"executor": "inline"},
}
"""Arms that are `automl search`: name -> section `run` of the space file. slots: 1 = one trial at a time per worker."""

BASELINES: dict[str, str] = {
    "tune-fresh": "benchmarks.baselines.tune_fresh",
    "tune-reuse": "benchmarks.baselines.tune_reuse",
    "optuna-trainer": "benchmarks.baselines.optuna_trainer",
}
"""(a), (b) and (c): name -> module."""

ARMS = (*OURS, *BASELINES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTimes:
    """One trial. started, ended: seconds since the command was started. evaluation_seconds: None if it is not known."""

    number: int
    started: float
    ended: float
    train_seconds: float
    evaluation_seconds: float | None
    process: int
    final_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One command. wall_seconds: until it had ended. peak_bytes: resident memory summed over all its processes.

    ground: what automl has recorded of model, data, precision and kernel, for arms that are automl.
    """

    arm: str
    wall_seconds: float
    peak_bytes: int
    processes: int
    trials: tuple[TrialTimes, ...]
    ground: Mapping[str, Any] | None

    @property
    def workers(self) -> int:
        """Processes that trained at the same time."""
        ends = {trial.process: max(t.ended for t in self.trials if t.process == trial.process) for trial in self.trials}
        starts = {process: min(t.started for t in self.trials if t.process == process) for process in ends}
        return max(sum(starts[other] < ends[one] <= ends[other] for other in ends) for one in ends)

    @property
    def most_resident(self) -> int:
        """Most trials in progress at the same time."""
        return max(sum(other.started <= one.started < other.ended for other in self.trials) for one in self.trials)

    @property
    def mean_resident(self) -> float:
        """Trials in progress, on average between the first start and the last end."""
        first, last = min(each.started for each in self.trials), max(each.ended for each in self.trials)
        return sum(each.ended - each.started for each in self.trials) / (last - first)

    @property
    def first_start(self) -> float:
        """Seconds from the command to the first trial."""
        return min(each.started for each in self.trials)

    @property
    def steady_seconds(self) -> float:
        """Seconds from the moment at which all slots were filled once to the end of the last trial."""
        filled = sorted(each.started for each in self.trials)[self.most_resident - 1]
        return max(each.ended for each in self.trials) - filled

    def as_json(self) -> dict[str, Any]:
        """Plain values for the report: everything raw, and what follows from it."""
        derived = ("workers", "most_resident", "mean_resident", "first_start", "steady_seconds")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def run_arm(arm: str, world: World, folder: Path, *, workers: int, threads: int) -> ArmRun:
    """Run the arm in an empty folder and caches of its own; raises RuntimeError unless it did exactly the work.

    workers, threads: for the baselines; automl chooses for itself.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"AUTOML_CACHE": str(folder / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("AUTOML_DB_URL", None)
    if arm in OURS:
        world.write_space(folder / "space.yaml", OURS[arm])
        environment.pop("OMP_NUM_THREADS", None)
        command = ["-m", "automl.cli.main", "search", "space.yaml", "--no-verify", "--json"]
    else:
        document = world.for_baselines(workers=workers, threads=threads, output=folder)
        (folder / "world.json").write_text(json.dumps(document), encoding="utf-8")
        environment["OMP_NUM_THREADS"] = str(threads)
        command = ["-m", BASELINES[arm], "world.json"]
    began = time.time()
    peak_bytes, processes, seconds = _execute([sys.executable, *command], folder, environment)
    trials, ground = _ours(folder, began) if arm in OURS else (_theirs(folder, began), None)
    check_work(arm, world.work, trials)
    return ArmRun(
        arm=arm,
        wall_seconds=seconds,
        peak_bytes=peak_bytes,
        processes=processes,
        trials=tuple(each for each, _ in trials),
        ground=ground,
    )


def _execute(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, int, float]:
    """Peak bytes, processes at the peak, wall seconds. Raises RuntimeError with the end of its output if it fails."""
    log = folder / "output.txt"
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            with MemorySampler(process.pid) as sampler:
                code = process.wait(LONGEST_SECONDS)
        except BaseException:
            process.terminate()
            process.wait(60)
            raise
    seconds = time.perf_counter() - start
    if code != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command[1:])} ended with {code}:\n{tail}")
    return sampler.peak_bytes, sampler.processes, seconds


Done = list[tuple[TrialTimes, int]]
"""Trials with the number of their evaluations."""


def _theirs(folder: Path, began: float) -> Done:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        (
            TrialTimes(
                number=line["trial"],
                started=line["started"] - began,
                ended=line["ended"] - began,
                train_seconds=line["train_seconds"],
                evaluation_seconds=line["evaluation_seconds"],
                process=line["process"],
                final_loss=line["measurements"][-1]["loss"],
            ),
            len(line["measurements"]),
        )
        for line in map(json.loads, lines)
    ]


def _ours(folder: Path, began: float) -> tuple[Done, Mapping[str, Any]]:
    """The trials as SQL has them; `process` is the number of the worker."""
    with open_database(f"sqlite:///{folder / 'automl.db'}", create=False, read_only=True) as database:
        store = database.store(STUDY)
        attempts = [each for each in store.attempts() if each.state is AttemptState.SUCCEEDED]
        found: Done = []
        for attempt in attempts:
            measured = store.measurements(attempt.trial)
            assert attempt.started_at is not None
            assert attempt.ended_at is not None
            times = TrialTimes(
                number=attempt.trial,
                started=_epoch(attempt.started_at) - began,
                ended=_epoch(attempt.ended_at) - began,
                train_seconds=measured[-1].seconds,
                evaluation_seconds=None,
                process=attempt.worker,
                final_loss=measured[-1].metrics["loss"],
            )
            found.append((times, len(measured)))
        ground = next(detail for _, kind, detail in store.events() if kind == "ground")
    return found, ground


def _epoch(moment: datetime) -> float:
    """Seconds since 1970; the database keeps UTC without saying so."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def check_work(arm: str, work: Work, trials: Done) -> None:
    """Raises RuntimeError unless every trial of the work was done once, with all its evaluations."""
    done = sorted((times.number, evaluations) for times, evaluations in trials)
    wanted = [(number, work.evaluations) for number in range(work.trials)]
    if done != wanted:
        raise RuntimeError(f"{arm} did other work than asked for: (trial, evaluations) {done}, not {wanted}")
