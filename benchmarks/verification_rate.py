"""A verification against the search it follows: training steps per second, on the same workers, in one run.

    python -m benchmarks.verification_rate search_spaces/bbc-topics.yaml

A search of `--trials` trials without pruning, then a verification of three configurations (two finalists and the
default) on `--seeds` seeds. Only the learning rate is searched, so that all adapters are alike and a trial costs what a
training does. Steps are divided by the time from the hello of the workers to their last word, as the event `workers` of
either has it: evaluations, slot files, adapters and SQL are in it; the whole time, with the start of the workers, is
stated beside it. A trial reads `task.evaluate_rows` validation rows at its end and fewer before, a training all test
rows at its end; both are in the table. With `--same-rows` a trial reads all validation rows at its end and none before,
so that both do the same work. Returns 1 if the rate is below `--least` times that of the search. Does not
measure what a verification finds, learning rates chosen on validation rows, or several nodes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from automl.results.folders import cache_folder
from automl.results.recorded import GROUND, WORKERS
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.base import ResultStore
from automl.storage.sql import Database, open_database
from automl.storage.verification import VerificationStore
from automl.sweep.run import run_sweep
from automl.verify.protocol import SECONDS
from automl.verify.run import VerifyOptions, verify_study
from benchmarks.report import Report, parser, table

SEARCHED = "learning_rate"
FIXED = {"rank": 8, "alpha_ratio": 2, "dropout": 0.0, "target": "all-linear"}
"""What the default configuration has, which is verified too."""


class Part(NamedTuple):
    """The search or the verification. seconds: the whole call; training: the longest worker's, from hello on.

    busy: share of the workers' time from hello on that they trained or evaluated. rows: evaluated for each trial.
    """

    name: str
    steps: int
    rows: int
    seconds: float
    training: float
    busy: float

    @property
    def rate(self) -> float:
        """Steps per second, all workers together."""
        return self.steps / self.training


def alike(spec: SweepSpec, args: Any) -> SweepSpec:
    """One search over the learning rate alone, nothing pruned, on so many workers, in fp32."""
    steps = 4 if args.quick else args.steps or spec.search.steps
    every = min(spec.search.evaluate_every, steps)
    search = replace(
        spec.search,
        sampler="random",
        pruner="none",
        trials=args.trials,
        steps=steps,
        evaluate_every=every,
        evaluations=None,
    )
    fixed = {**spec.space.fixed, **{name: value for name, value in FIXED.items() if name not in spec.space.fixed}}
    space = replace(
        spec.space,
        parameters=tuple(each for each in spec.space.parameters if each.name == SEARCHED),
        fixed=fixed,
        enqueue=(),
        constraints=(),
    )
    task = spec.task
    if args.same_rows:
        search, task = replace(search, evaluate_every=steps, evaluations=()), replace(task, evaluate_rows=0)
    executor = args.executor or spec.run.executor
    run = replace(spec.run, executor=executor, workers=args.workers, threads=1, precision=args.precision)
    return replace(spec, task=task, space=space, search=search, run=run)


def measure(spec: SweepSpec, seeds: int) -> list[Part]:
    """Search and verify in folders of their own; the search is the first part."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        own = replace(
            spec,
            storage_url=f"sqlite:///{folder}/automl.db",
            run=replace(spec.run, output=Path(folder) / "output"),
        )
        began = time.perf_counter()
        summary = run_sweep(own, cache_folder())
        searched = time.perf_counter() - began
        with open_database(own.storage_url, create=False) as database:
            store = database.store(own.study)
            ground = store.last_event(GROUND) or {}
            evaluated = sum(rows for _, rows in ground["evaluations"]) or ground["rows"]["validation"]
            search = _part("search", store, summary.spent_steps, searched, rows=evaluated, number=None)
            began = time.perf_counter()
            found = verify_study(database, own, cache_folder(), VerifyOptions(seeds=seeds, finalists=2))
            seconds = time.perf_counter() - began
            steps = _trainings(database, own.study, found.number) * own.search.steps
            tested = found.plan["test_rows"]
            return [search, _part("verification", store, steps, seconds, rows=tested, number=found.number)]


def _trainings(database: Database, study: str, number: int) -> int:
    return sum(score.metric == SECONDS for score in VerificationStore(database, study).scores(number))


def _part(name: str, store: ResultStore, steps: int, seconds: float, *, rows: int, number: int | None) -> Part:
    starts = [
        start
        for _, kind, detail in store.events()
        if kind == WORKERS and detail.get("verification") == number
        for start in detail["starts"]
    ]
    spans = [start["busy_seconds"] + start["idle_seconds"] for start in starts]
    busy = sum(start["busy_seconds"] for start in starts) / sum(spans)
    return Part(name=name, steps=steps, rows=rows, seconds=seconds, training=max(spans), busy=busy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if the verification is slower than it may be."""
    options = parser("verification_rate", (__doc__ or "").split("\n\n")[0])
    options.add_argument("space", type=Path, nargs="?", default=Path("search_spaces/bbc-topics.yaml"))
    options.add_argument("--trials", type=int, default=12)
    options.add_argument("--seeds", type=int, default=4)
    options.add_argument("--steps", type=int, help="of a trial; as in the space file unless given")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--precision", default="fp32")
    options.add_argument("--executor", choices=["ray", "inline"], help="as in the space file unless given")
    options.add_argument("--same-rows", action="store_true", help="evaluate all validation rows once in each trial")
    options.add_argument("--least", type=float, default=0.9)
    args = options.parse_args(arguments)
    report = Report("verification_rate", args)
    report.print_machine()
    spec = alike(load_space(args.space), args)
    parts = measure(spec, args.seeds)
    search, verification = parts
    ratio = verification.rate / search.rate
    report.add("parts", [{**each._asdict(), "rate": each.rate} for each in parts])
    report.add("ratio", ratio)
    print(table([row(each) for each in parts]))
    print(f"rate of the verification: {ratio:.2f} times that of its search")
    return 0 if args.quick or ratio >= args.least else 1


def row(part: Part) -> Mapping[str, object]:
    """One row of the table."""
    return {
        "part": part.name,
        "steps": part.steps,
        "rows per trial": part.rows,
        "steps/s": f"{part.rate:.2f}",
        "from hello s": f"{part.training:.1f}",
        "whole s": f"{part.seconds:.1f}",
        "busy %": f"{100 * part.busy:.1f}",
    }


if __name__ == "__main__":
    sys.exit(main())
