"""What trials that end themselves save, and whether the same winner is found: searches replayed on recorded curves.

    python -m benchmarks.ended_trials --data FOLDER --tables taskset,lcbench --rows rows.jsonl

Every search has as many trials; the same one is made without a pruner and with the default one, each with and without
ends by `automl.training.early_stopping`, along the product's own path with a table in place of training. Compared are
the share of an unpruned search's steps, and the winners at their best evaluations **on test rows**, as normalised
regret (0 = best of the table, 1 = nothing learnt), paired by seed. LCBench has no test rows: its curves are without
noise and stand for them.

The tables of `benchmarks.lora_curves` hold training losses, the others do not. There they are made up twice, so that
the truth lies between: `least`, the validation loss itself, by which no trial overfits, and `most`, a loss that falls
whatever the validation loss does, unless that has come back to where it began. Limits other than the default's are
chosen by leaving each task out: those that take the fewest steps on all others without losing more than --tolerance.
Does not measure what an evaluation costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray

from automl.execution.dispatch import Dispatcher
from automl.execution.inline import InlineExecutor
from automl.execution.simulated import CurveTable, TableHost
from automl.space.spec import SearchSettings, SearchSpace
from automl.study.study import Study
from automl.training.early_stopping import LIMITS, Limits, best_of, reason_to_stop
from automl.trial import BestCheckpoint, Measurement, Metrics, TrialFailure, TrialSpec
from automl.verify.statistics import paired
from benchmarks.curve_file import read_curves
from benchmarks.replay import DATA_VARIABLE, TRAININGS, rows_so_far
from benchmarks.replay_world import LORA, recorded, tasks
from benchmarks.report import Report, names, numbers, parser, table
from tests.fakes import MemoryStore

KINDS = ("taskset", "lcbench", LORA[0])
LOSSES = ("least", "most", "recorded")
NEVER = "never"
"""In place of limits: no trial ends itself."""

GRID = tuple(Limits(patience=patience, share=share) for patience in (1, 2, 3) for share in (1 / 12, 1 / 6, 1 / 3))
SAID_EVERY = 15.0
TRIALS = 24

Floats = NDArray[np.float64]


class Curves(NamedTuple):
    """By row and evaluation: training losses, and losses on validation rows where these are not the objective."""

    training: Floats
    rows: Floats | None


class Job(NamedTuple):
    """One search. limits: as text, or NEVER. losses: one of LOSSES. evaluations: of a trial; 0 = all there are."""

    kind: str
    task: str
    pruner: str
    limits: str
    losses: str
    workers: int
    seed: int
    trials: int
    evaluations: int
    folder: str

    @property
    def key(self) -> str:
        """What identifies its result."""
        return "|".join(map(str, self[:-1]))


def text_of(limits: Limits) -> str:
    """`2:0.167`."""
    return f"{limits.patience}:{limits.share:.3g}"


def limits_of(text: str) -> Limits | None:
    """The limits of a text, the others at their defaults; None for NEVER. Raises ValueError."""
    if text == NEVER:
        return None
    known = {text_of(each): each for each in (LIMITS, *GRID)}
    if text in known:
        return known[text]
    patience, _, share = text.partition(":")
    return Limits(patience=int(patience), share=float(share))


def falling(values: Floats, learnt: float = LIMITS.learnt) -> Floats:
    """A training loss that falls on whatever the values (N, E) do, unless they are back where they began."""
    slope = 1.0 - 1e-6 * np.arange(values.shape[1])
    lowest = np.fmin.accumulate(values, axis=1) * slope
    first = values[:, :1]
    return np.where(values >= first - learnt * np.abs(first), values, lowest)


class Ground(NamedTuple):
    """A task to search in. metric: of the table's values. test: losses at each place of it."""

    table: CurveTable
    metric: str
    test: Floats
    curves: Curves

    def of_few(self, evaluations: int) -> Ground:
        """A task with so many of its evaluations, evenly spaced, the last among them; 0 = all there are."""
        length = self.table.evaluations
        if not 0 < evaluations < length:
            return self
        places = np.round(np.linspace(length / evaluations, length, evaluations)).astype(int) - 1
        training, rows = self.curves
        return Ground(
            replace(self.table, curves=self.table.curves[:, places]),
            self.metric,
            self.test[:, places],
            Curves(training[:, places], None if rows is None else rows[:, places]),
        )


def ground_of(kind: str, task: str, folder: Path, losses: str) -> Ground:
    """Raises ValueError if training losses are asked for that were not recorded."""
    world = recorded(folder, kind, task)
    values = world.table.curves
    test = values if world.test is None else world.test
    if losses != "recorded":
        return Ground(world.table, "loss", test, Curves(values if losses == "least" else falling(values), None))
    if kind not in LORA:
        raise ValueError(f"{kind}: its training losses were not recorded; --losses least,most make them up")
    file = read_curves(folder / f"{task}.npz")
    kept = [file.curves[key] for key in sorted(file.curves) if key.repeat == 0]
    training = np.array([curve.losses for curve in kept])
    if np.isnan(training).all():
        raise ValueError(f"{file.path}: holds no training losses; --losses least,most make them up")
    if file.metrics[0] == "loss":
        return Ground(world.table, "loss", test, Curves(training, None))
    rows = np.array([curve.validation[:, -1] for curve in kept])
    return Ground(replace(world.table, curves=1.0 - values), file.metrics[0], test, Curves(training, rows))


@dataclass(slots=True, kw_only=True)
class EndingHost:
    """A table host whose trials know their training losses, and end themselves as a worker's do."""

    host: TableHost
    curves: Curves
    limits: Limits
    specs: dict[int, TrialSpec] = field(default_factory=dict)
    seen: dict[int, list[Measurement]] = field(default_factory=dict)
    busy_seconds: float = 0.0

    @property
    def capacity(self) -> int:
        """See `Host.capacity`."""
        return self.host.capacity

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """See `Host.open`."""
        self.specs[spec.number] = spec
        self.host.open(spec)
        return list(self.seen.setdefault(spec.number, []))

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """See `Host.advance`."""
        return [item if isinstance(item, TrialFailure) else self._measured(item) for item in self.host.advance()]

    def _measured(self, item: Measurement) -> Measurement:
        spec, row, place = self.specs[item.trial], self.host.rows[item.trial], item.step - 1
        known = self.seen[item.trial]
        rows = {} if self.curves.rows is None else {"loss": float(self.curves.rows[row, place])}
        known.append(
            replace(item, metrics={**rows, **item.metrics}, training_loss=float(self.curves.training[row, place]))
        )
        reason = reason_to_stop(spec, known, self.limits)
        if reason or item.step >= spec.last_step:
            best = best_of(spec, known)
            assert best is not None
            known[-1] = replace(known[-1], best=BestCheckpoint(step=best.step, metrics=best.metrics, reason=reason))
        return known[-1]

    def worth_at(self, trial: int) -> int:
        """The evaluation that a trial which is over is worth."""
        best = self.seen[trial][-1].best
        assert best is not None
        return best.step

    def park(self, trial: int) -> None:
        """See `Host.park`."""
        self.host.park(trial)

    def close(self, trial: int) -> None:
        """See `Host.close`."""
        self.host.close(trial)

    def baseline(self) -> Metrics:
        """See `Host.baseline`."""
        return self.host.baseline()

    def shutdown(self) -> None:
        """See `Host.shutdown`."""
        self.host.shutdown()


def run_job(job: Job) -> dict[str, Any]:
    """One search: its share of an unpruned search's steps, and its winner's place and regret on test rows."""
    ground = ground_of(job.kind, job.task, Path(job.folder), job.losses).of_few(job.evaluations)
    table, limits = ground.table, limits_of(job.limits)
    host = EndingHost(
        host=TableHost(table, metric=ground.metric, capacity=job.workers),
        curves=ground.curves,
        limits=limits or LIMITS,
    )
    study = Study(
        name="ended",
        storage=optuna.storages.InMemoryStorage(),
        store=MemoryStore("ended"),
        space=SearchSpace(parameters=table.parameters(), columns=table.names),
        settings=SearchSettings(
            pruner=job.pruner,
            trials=job.trials,
            steps=table.evaluations,
            evaluate_every=1,
            seed=job.seed,
            checkpoint="best",
            early_stopping=limits is not None,
        ),
        metric=ground.metric,
        run=1,
        derive=lambda hyper: {},
    )
    InlineExecutor().run(Dispatcher(study), lambda: host)
    study.close()
    best = study.best()
    row, place = (-1, 0) if best is None else (host.host.rows[best.number], host.worth_at(best.number) - 1)
    bests = [known[-1].best for known in host.seen.values() if known]
    ends = [each.reason.split()[0] for each in bests if each is not None and each.reason]
    row_of = {name: value for name, value in job._asdict().items() if name != "folder"}
    return {
        **row_of,
        "key": job.key,
        "steps": host.host.evaluations / (job.trials * table.evaluations),
        "winner": row,
        "regret": _regret(ground.test, row, place),
        "ends": {reason: ends.count(reason) for reason in sorted(set(ends))},
    }


def _regret(test: Floats, row: int, place: int) -> float:
    """Regret of a place in the table; 1 if nothing was found."""
    least = float(np.where(np.isfinite(test), test, np.inf).min())
    first = float(np.median(test[:, 0][np.isfinite(test[:, 0])]))
    return 1.0 if row < 0 else (float(test[row, place]) - least) / (first - least)


Rows = Mapping[str, Mapping[str, Any]]


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """All searches that were asked for, those without ends first."""
    arms = [(pruner, limits, losses) for limits in args.limits for pruner in args.pruners for losses in args.losses]
    plain = [(pruner, NEVER, args.losses[0]) for pruner in dict.fromkeys(("none", *args.pruners))]
    return [
        Job(kind, task, *arm, workers, seed, args.trials, args.evaluations, str(folder))
        for arm in dict.fromkeys((*plain, *arms))
        for kind in args.tables
        for folder in [args.trainings if kind in LORA else args.data]
        for task in tasks(folder, kind)
        for workers in args.workers
        for seed in range(args.first_seed, args.first_seed + args.seeds)
    ]


class Arm(NamedTuple):
    """A way to search, over tasks and seeds."""

    kind: str
    pruner: str
    limits: str
    losses: str
    workers: int


def by_arm(rows: Rows) -> dict[Arm, dict[tuple[str, int], Mapping[str, Any]]]:
    """Searches by arm, then by task and seed."""
    found: dict[Arm, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for row in rows.values():
        arm = Arm(row["kind"], row["pruner"], row["limits"], row["losses"], row["workers"])
        found.setdefault(arm, {})[row["task"], row["seed"]] = row
    return found


def results(rows: Rows) -> Iterator[dict[str, Any]]:
    """For each arm: its steps, and its winners against those of the same pruner without ends, paired."""
    searches = by_arm(rows)
    plain = {arm[:2] + arm[4:]: found for arm, found in searches.items() if arm.limits == NEVER}
    for arm, found in searches.items():
        base = plain.get((arm.kind, arm.pruner, arm.workers), {})
        common = sorted(found.keys() & base.keys())
        if not common:
            continue
        seeds = sorted({seed for _, seed in common})
        gaps = {place: found[place]["regret"] - base[place]["regret"] for place in common}
        by_seed = [statistics.fmean(gap for (_, at), gap in gaps.items() if at == seed) for seed in seeds]
        ends = [reason for place in common for reason, times in found[place]["ends"].items() for _ in range(times)]
        yield {
            **arm._asdict(),
            "searches": len(common),
            "steps": statistics.fmean(found[place]["steps"] for place in common),
            "most_steps": max(found[place]["steps"] for place in common),
            "regret": statistics.fmean(found[place]["regret"] for place in common),
            "difference": paired(by_seed, 0.95)[:3] if len(by_seed) > 1 and arm.limits != NEVER else None,
            "same": statistics.fmean(found[place]["winner"] == base[place]["winner"] for place in common),
            "not_worse": statistics.fmean(gap <= 0 for gap in gaps.values()),
            "ends": {reason: ends.count(reason) / len(common) for reason in sorted(set(ends))},
        }


def left_out(rows: Rows, tolerance: float) -> Iterator[dict[str, Any]]:
    """For each pruner and way to know training losses: limits chosen without a task, and what they do on it."""
    searches = by_arm(rows)
    groups = dict.fromkeys((arm.pruner, arm.losses, arm.workers) for arm in searches if arm.limits != NEVER)
    for pruner, losses, workers in groups:
        cells: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}
        for arm, found in searches.items():
            if (arm.pruner, arm.losses, arm.workers) != (pruner, losses, workers) or arm.limits == NEVER:
                continue
            base = next(
                each
                for other, each in searches.items()
                if (other.kind, other.pruner, other.limits, other.workers) == (arm.kind, pruner, NEVER, workers)
            )
            for task in {task for task, _ in found}:
                places = [place for place in found if place[0] == task and place in base]
                steps = statistics.fmean(found[place]["steps"] for place in places)
                gap = statistics.fmean(found[place]["regret"] - base[place]["regret"] for place in places)
                cells.setdefault(arm.limits, {})[arm.kind, task] = (steps, gap)
        yield from _judged(cells, tolerance, {"pruner": pruner, "losses": losses, "at once": workers})


def _judged(
    cells: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]], tolerance: float, of: Mapping[str, object]
) -> Iterator[dict[str, Any]]:
    """cells: steps and difference of regret, by limits and task. Only limits that have searched all tasks count."""
    every = set[tuple[str, str]]().union(*cells.values())
    whole = {limits: found for limits, found in cells.items() if found.keys() == every}
    chosen = {task: _chosen(whole, every - {task}, tolerance) for task in every}
    for kind in sorted({kind for kind, _ in every}):
        of_kind = [task for task in every if task[0] == kind]
        taken = [chosen[task] for task in of_kind]
        own = [whole[limits][task] for limits, task in zip(taken, of_kind, strict=True)]
        yield {
            "tables": kind,
            **of,
            "chosen": ", ".join(f"{limits} ({taken.count(limits)})" for limits in sorted(set(taken))),
            "steps": f"{statistics.fmean(steps for steps, _ in own):.0%}",
            "difference": f"{statistics.fmean(gap for _, gap in own):+.3f}",
        }


def _chosen(
    whole: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]], tasks: set[tuple[str, str]], tolerance: float
) -> str:
    """The limits with the fewest steps on these tasks, of those that lose no more there; else those that lose least."""
    means = {
        limits: tuple(statistics.fmean(found[task][column] for task in tasks) for column in (0, 1))
        for limits, found in whole.items()
    }
    good = [limits for limits, (_, gap) in means.items() if gap <= tolerance]
    return min(good, key=lambda limits: means[limits][0]) if good else min(means, key=lambda limits: means[limits][1])


def shown(row: Mapping[str, Any]) -> dict[str, object]:
    """One row of the printed table."""
    gap = row["difference"]
    return {
        "tables": row["kind"],
        "pruner": row["pruner"],
        "ends": row["limits"],
        "losses": "" if row["limits"] == NEVER else row["losses"],
        "at once": row["workers"],
        "steps": f"{row['steps']:.0%} (most {row['most_steps']:.0%})",
        "test regret": f"{row['regret']:.3f}",
        "by ends": "" if gap is None else f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]",
        "same winner": f"{row['same']:.0%}",
        "the same or better": f"{row['not_worse']:.0%}",
        "ended, of a search's trials": ", ".join(f"{count:.1f} {reason}" for reason, count in row["ends"].items()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("ended_trials", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, "")), metavar="FOLDER")
    options.add_argument("--trainings", type=Path, default=TRAININGS, metavar="FOLDER", help="of the table `lora`")
    options.add_argument("--tables", type=names, default=KINDS[:2], help=f"of {', '.join(KINDS)}")
    options.add_argument("--losses", type=names, default=("least", "most"), help=f"of {', '.join(LOSSES)}")
    options.add_argument("--pruners", type=names, default=("none", "halving"))
    options.add_argument(
        "--limits", type=names, default=(text_of(LIMITS),), help="patience:share of the steps; grid = all of a few"
    )
    options.add_argument("--tolerance", type=float, default=0.005, help="regret that other limits may cost")
    options.add_argument("--trials", type=int, default=TRIALS, help="of a search")
    options.add_argument("--evaluations", type=int, default=0, help="of a trial, evenly spaced; 0 = all there are")
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--first-seed", type=int, default=200)
    options.add_argument("--workers", type=numbers, default=(1,), metavar="N,N,…", help="trials at once")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument("--rows", type=Path, default=None, metavar="FILE", help="JSON lines; continued if it exists")
    args = options.parse_args(arguments)
    if args.quick:
        args.trials, args.seeds, args.jobs = 6, 2, 1
    if args.limits == ("grid",):
        args.limits = tuple(map(text_of, GRID))
    if mistake := _mistake(args):
        print(mistake)
        return 2
    return _run(args)


def _mistake(args: argparse.Namespace) -> str:
    """A line about what cannot be replayed, empty if all can."""
    for option, given, known in (("--tables", args.tables, KINDS), ("--losses", args.losses, LOSSES)):
        if unknown := [name for name in given if name not in known]:
            return f"{option}: there is no {unknown[0]!r}; there are {', '.join(known)}"
    for text in args.limits:
        try:
            limits_of(text)
        except ValueError:
            return f"--limits: {text!r}: PATIENCE:SHARE is wanted, as {text_of(LIMITS)}"
    for kind in args.tables:
        folder = args.trainings if kind in LORA else args.data
        if not tasks(folder, kind):
            return f"no curves of {kind} under {folder.resolve()}: give --data or --trainings"
        for losses, task in product(args.losses, tasks(folder, kind)):
            try:
                ground_of(kind, task, folder, losses)
            except ValueError as error:
                return str(error)
    return ""


def _run(args: argparse.Namespace) -> int:
    report = Report("ended_trials", args)
    report.print_machine()
    rows = rows_so_far(args.rows)
    wanted = jobs_of(args)
    missing = [job for job in wanted if job.key not in rows]
    print(f"{len(wanted)} searches, {len(wanted) - len(missing)} of them done before", flush=True)
    said = time.monotonic()
    with get_context("spawn").Pool(args.jobs) as pool:
        for row in pool.imap(run_job, missing):
            rows[row["key"]] = row
            if args.rows is not None:
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if time.monotonic() - said >= SAID_EVERY:
                said = time.monotonic()
                print(f"{sum(job.key in rows for job in wanted)} of {len(wanted)} searches", flush=True)
    made = {job.key: rows[job.key] for job in wanted if job.key in rows}
    found, chosen = list(results(made)), list(left_out(made, args.tolerance)) if len(args.limits) > 1 else []
    report.add("results", found)
    report.add("left_out", chosen)
    print(table([shown(row) for row in found]))
    if chosen:
        print(f"\nlimits chosen on all other tasks:\n{table(chosen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
