"""Search quality on recorded curves: the default policy, Optuna's sampler and pruner pairs, and the top-k rule.

Every search spends the same evaluations; what is compared is the best value seen after 2, 5, 10 and 20 full runs'
worth of them, as normalised regret (0 = best of the table, 1 = nothing learnt). Ours runs along the product's own path:
Study, Dispatcher, sampler, pruner and, with `--storage sqlite`, SQL. Data: --data, or $AUTOML_REPLAY_DATA, a folder
with hpo_taskset_nlp/taskset_nlp.npz and hpo_lcbench_surrogate/lcbench.npz; the tables `lora` and `lora-at-alpha` are
those of `benchmarks.lora_curves`. Finished searches are kept in --rows, so that the command continues where it was
stopped; `benchmarks.left_out` judges them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import ROOT
from benchmarks.replay_arms import by_optuna, by_top_k, product
from benchmarks.replay_world import BUDGETS, LORA, TUNED_TASKS, recorded, tasks
from benchmarks.report import Report, names, numbers, parser, table

DATA_VARIABLE = "AUTOML_REPLAY_DATA"
TRAININGS = ROOT / "benchmarks" / "recorded" / "lora_curves"

ARMS = (
    "halving",
    "peer",
    "top-k(3)",
    *(
        f"{sampler}+{pruner}"
        for sampler in ("tpe", "random")
        for pruner in ("none", "median", "percentile", "hyperband", "sha1", "sha3")
    ),
)
"""Arms of the table by default: pruners of ours with TPE, the top-k rule, then Optuna's pairs."""


class Job(NamedTuple):
    """One search. arm: one of ours, `top-k(E)`, or `sampler+pruner` for Optuna's.

    Ours: a pruner (`halving`, or `halving:first_rung=3;explore=0.4`), after a sampler if it is not TPE (`gp/halving`).
    """

    arm: str
    workers: int
    kind: str
    task: str
    seed: int
    storage: str
    data: str

    @property
    def key(self) -> str:
        """What identifies its result."""
        storage = "" if "+" in self.arm or self.arm.startswith("top-k") else self.storage
        return "|".join(map(str, (self.arm, self.workers, self.kind, self.task, self.seed, storage)))


def run_job(job: Job) -> dict[str, Any]:
    """Run one search and return its row."""
    began = time.perf_counter()
    world = recorded(Path(job.data), job.kind, job.task)
    if job.arm.startswith("top-k"):
        result = by_top_k(world, job.seed, job.workers, evaluations=int(job.arm[6:-1]))
    elif "+" in job.arm:
        sampler, pruner = job.arm.split("+")
        result = by_optuna(world, job.seed, job.workers, sampler=sampler, pruner=pruner)
    else:
        sampler, _, pruner = job.arm.rpartition("/")
        (sampler, of_sampler), (pruner, of_pruner) = _named(sampler or "tpe"), _named(pruner)
        result = product(
            world,
            job.seed,
            job.workers,
            pruner=pruner,
            options=of_pruner,
            sampler=sampler,
            sampler_options=of_sampler,
            is_sql=job.storage == "sqlite",
        )
    row = {**job._asdict(), "key": job.key, "seconds": round(time.perf_counter() - began, 2), **result._asdict()}
    del row["data"]
    return row


def _named(text: str) -> tuple[str, dict[str, float]]:
    """A sampler or a pruner, and its options."""
    name, _, options = text.partition(":")
    pairs = (part.split("=") for part in options.split(";") if part)
    return name, {option: float(value) if "." in value else int(value) for option, value in pairs}


def jobs_of(args: argparse.Namespace) -> Iterator[Job]:
    """All searches that were asked for."""
    for arm in args.arms:
        for workers in args.workers:
            for kind in args.tables:
                folder = folder_of(args, kind)
                for task in tasks(folder, kind):
                    for seed in range(args.first_seed, args.first_seed + args.seeds):
                        yield Job(arm, workers, kind, task, seed, args.storage, str(folder))


def folder_of(args: argparse.Namespace, kind: str) -> Path:
    """Where the tables of this kind lie."""
    found: Path = args.trainings if kind in LORA else args.data
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and medians over tasks and seeds, and the standard error over seeds of the average of the four budgets."""

    def at(row: Mapping[str, Any], name: str, budget: int) -> float:
        by_budget = row[name]
        return float(by_budget[budget] if budget in by_budget else by_budget[str(budget)])

    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).extend(at(row, "regret", budget) for budget in BUDGETS)
    averages = [statistics.fmean(values) for values in by_seed.values()]
    error = statistics.stdev(averages) / len(averages) ** 0.5 if len(averages) > 1 else None
    top = sum(row["top"] for row in rows)
    result: dict[str, Any] = {
        "mean": {budget: statistics.fmean(at(row, "regret", budget) for row in rows) for budget in BUDGETS},
        "median": {budget: statistics.median(at(row, "regret", budget) for row in rows) for budget in BUDGETS},
        "average": statistics.fmean(averages),
        "standard_error": error,
        "started": statistics.fmean(row["started"] for row in rows),
        "top_started": top,
        "false_kills": sum(row["killed"] for row in rows) / top if top else None,
        "unfinished": sum(row["unfinished"] for row in rows) / top if top else None,
        "searches": len(rows),
    }
    if all(row["test_regret"] for row in rows):
        result["test_mean"] = {
            budget: statistics.fmean(at(row, "test_regret", budget) for row in rows) for budget in BUDGETS
        }
    return result


def shown(arm: str, workers: int | str, facts: Mapping[str, Any]) -> dict[str, object]:
    """One row of the printed table."""

    def numbers_of(name: str) -> str:
        return " ".join(f"{facts[name][budget]:.3f}".lstrip("0") for budget in BUDGETS)

    error = facts["standard_error"]
    kills = facts["false_kills"]
    return {
        "search": arm,
        "at once": workers,
        "mean at 2 5 10 20": numbers_of("mean"),
        "median": numbers_of("median"),
        "average": f"{facts['average']:.3f}" + (f" ± {error:.3f}" if error is not None else ""),
        "started": f"{facts['started']:.0f}" if facts["started"] else "",
        "top 1 % killed": "" if kills is None else f"{kills:.0%}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("replay", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, "")), metavar="FOLDER")
    options.add_argument("--tables", type=tables, default=("taskset",), metavar="taskset,lcbench,lora,lora-at-alpha")
    options.add_argument("--trainings", type=Path, default=TRAININGS, metavar="FOLDER", help="of the tables `lora`")
    options.add_argument("--arms", type=names, default=ARMS, metavar="NAME,…")
    options.add_argument("--workers", type=numbers, default=(1, 2, 8), metavar="N,N,…", help="trials at once")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--first-seed", type=int, default=100, help="seeds 0 to 5 were used to choose the policy")
    options.add_argument("--storage", choices=("memory", "sqlite"), default="memory")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument("--seconds", type=float, default=float("inf"), help="start no search after so many seconds")
    options.add_argument("--rows", type=Path, default=None, metavar="FILE", help="JSON lines; continued if it exists")
    args = options.parse_args(arguments)
    if args.quick:
        args.arms, args.workers, args.seeds = ("halving", "top-k(3)", "random+sha3"), (1,), 1
    if missing := next((kind for kind in args.tables if not tasks(folder_of(args, kind), kind)), None):
        where = "--trainings" if missing in LORA else f"--data or set {DATA_VARIABLE}"
        print(f"no curves under {folder_of(args, missing).resolve()}: give {where}")
        return 2
    return _run(args)


def tables(text: str) -> tuple[str, ...]:
    """Kinds of tables, as an option's type."""
    known = ("taskset", "lcbench", *LORA)
    if unknown := [name for name in names(text) if name not in known]:
        raise argparse.ArgumentTypeError(f"there are no tables {unknown[0]!r}; there are {', '.join(known)}")
    return names(text)


def _run(args: argparse.Namespace) -> int:
    report = Report("replay", args)
    rows = rows_so_far(args.rows)
    wanted = list(jobs_of(args))
    missing = [job for job in wanted if job.key not in rows]
    deadline = time.monotonic() + args.seconds
    print(f"{len(wanted)} searches, {len(wanted) - len(missing)} of them done before")
    with get_context("spawn").Pool(args.jobs) as pool:
        for row in pool.imap(run_job, _until(missing, deadline)):
            rows[row["key"]] = row
            if args.rows is not None:
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    printed = []
    for kind in args.tables:
        for arm in args.arms:
            for workers in args.workers:
                of_arm = [rows[job.key] for job in wanted if _belongs(job, arm, workers, kind) and job.key in rows]
                for part, chosen in _parts(kind, of_arm):
                    facts = summary(chosen)
                    report.append("results", {"tables": part, "arm": arm, "workers": workers, **facts})
                    printed.append({"tables": part, **shown(arm, workers, facts)})
    print(table(printed))
    report.add("searches", [rows[job.key] for job in wanted if job.key in rows])
    return 0


def _until(jobs: Sequence[Job], deadline: float) -> Iterator[Job]:
    return (job for job in jobs if time.monotonic() < deadline)


def _belongs(job: Job, arm: str, workers: int, kind: str) -> bool:
    return job.arm == arm and job.kind == kind and job.workers == workers


def _parts(kind: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """All tasks, and those the policy was not chosen on."""
    if rows:
        yield kind, list(rows)
    unseen = [row for row in rows if row["task"] not in TUNED_TASKS]
    if kind == "taskset" and unseen and len(unseen) < len(rows):
        yield "taskset, unseen tasks", unseen


def rows_so_far(path: Path | None) -> dict[str, dict[str, Any]]:
    """What an earlier run has written there, a document on each line, by its `key`; a line cut off is left out."""
    if path is None or not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    return {row["key"]: row for row in (json.loads(line) for line in lines if line.endswith("}"))}


if __name__ == "__main__":
    sys.exit(main())
