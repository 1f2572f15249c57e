"""What pruning costs in quality and saves in steps on real LoRA curves.

Records the curves of a pool of random configurations, all trained to the end (`automl search`, MiniLM), and then
searches in that pool again and again through the product's own path, with each pruner and without any: share of the
steps of an unpruned search, and the difference of the winners' final accuracies, paired by the seed of the sampler. A
pool stays in --work, so the command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

from automl.execution.dispatch import Dispatcher
from automl.execution.inline import InlineExecutor
from automl.execution.simulated import CurveTable, TableHost
from automl.space.load import load_space
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.sql import open_database
from automl.study.queries import list_trials
from automl.study.study import Study
from automl.sweep.run import run_sweep
from automl.trial import Scalar
from automl.verify.statistics import paired
from benchmarks.report import Report, names, numbers, parser, table
from benchmarks.text_sets import HEADLINES, add_data_option, first_missing, model_and_task
from tests.fakes import MemoryStore

TARGETS = ("qv", "all-linear")
LOG = ("rank", "alpha_ratio", "learning_rate")
COLUMNS = (*LOG, "dropout", "target")
"""Hyperparameters of a pool; `target` is kept as its place in TARGETS."""

SPACE = """version: 1
study: {name}
{task}
space:
  rank: {{type: int, low: 1, high: 16, log: true}}
  alpha_ratio: {{type: categorical, choices: [1, 2, 4]}}
  dropout: {{type: categorical, choices: [0.0, 0.1]}}
  target: {{type: categorical, choices: [qv, all-linear]}}
  learning_rate: {{type: float, low: 2.0e-4, high: 2.0e-2, log: true}}
fixed: {{batch_size: 16, max_length: 24}}
search: {{sampler: random, pruner: none, trials: {pool}, steps: {steps}, evaluate_every: {every}, seed: 1}}
run: {{executor: inline, output: "{work}"}}
storage: {{url: "sqlite:///{work}/{name}.db"}}
"""


class Arm(NamedTuple):
    """A way to search. share: it may spend this part of an unpruned search's steps, on any number of trials; None = it
    has as many trials as the unpruned search.
    """

    pruner: str
    share: float | None = None

    @property
    def title(self) -> str:
        """As in the table."""
        return self.pruner if self.share is None else f"{self.pruner}, {self.share:.0%} of the steps"


class Found(NamedTuple):
    """How a search ended. steps: share of an unpruned search's. loss: last value of its winner. started: trials."""

    steps: float
    loss: float
    started: int


def record(args: argparse.Namespace, name: str) -> CurveTable:
    """The pool of a data set, as losses (1 - accuracy); the curve of a diverged trial ends in infinity."""
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.yaml"
    text = SPACE.format(
        name=name,
        task=model_and_task(args.data, name, evaluate_rows=args.evaluate_rows),
        pool=args.pool,
        steps=args.steps,
        every=args.evaluate_every,
        work=work,
    )
    path.write_text(text, encoding="utf-8")
    spec = load_space(path)
    run_sweep(spec, work / "cache")
    with open_database(spec.storage_url, create=False) as database:
        store = database.store(name)
        known = list_trials(database.optuna_storage(), name, store)
        trials = {trial.number: trial.params for trial in known if trial.number < args.pool}
        measured = [item for item in store.measurements() if item.trial in trials]
    rows = {number: row for row, number in enumerate(sorted(trials))}
    curves = np.full((len(rows), math.ceil(args.steps / args.evaluate_every)), np.inf)
    for item in measured:
        curves[rows[item.trial], math.ceil(item.step / args.evaluate_every) - 1] = 1 - item.metrics["accuracy"]
    return CurveTable(
        names=COLUMNS,
        configurations=np.array([[_number(name, trials[number][name]) for name in COLUMNS] for number in rows]),
        curves=curves,
        log=frozenset(LOG),
    )


def _number(name: str, value: Scalar) -> float:
    return float(TARGETS.index(str(value))) if name == "target" else float(value)


def search(curves: CurveTable, arm: Arm, seed: int, workers: int, trials: int) -> Found:
    """One search with the default sampler. trials: of an unpruned search."""
    unpruned = trials * curves.evaluations
    study = Study(
        name="pool",
        storage=optuna.storages.InMemoryStorage(),
        store=MemoryStore("pool"),
        space=SearchSpace(parameters=curves.parameters(), columns=curves.names),
        settings=SearchSettings(
            pruner=arm.pruner,
            trials=trials if arm.share is None else len(curves.curves),
            max_steps=None if arm.share is None else int(arm.share * unpruned),
            steps=curves.evaluations,
            evaluate_every=1,
            seed=seed,
        ),
        metric="loss",
        run=1,
        derive=lambda hyper: {},
    )
    host = TableHost(curves, metric="loss", capacity=workers)
    InlineExecutor().run(Dispatcher(study), lambda: host)
    study.close()
    best = study.best()
    assert best is not None
    return Found(host.evaluations / unpruned, best.value, len(host.rows))


def compare(curves: CurveTable, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm against the unpruned search with the same seeds."""
    arms = [Arm(pruner) for pruner in args.pruners] + [Arm("halving", share) for share in args.shares]
    best = float(curves.curves[:, -1].min())
    for workers in args.workers:
        full = [search(curves, Arm("none"), seed, workers, args.trials) for seed in range(args.searches)]
        for arm in arms:
            found = [search(curves, arm, seed, workers, args.trials) for seed in range(args.searches)]
            gains = [each.loss - one.loss for one, each in zip(found, full, strict=True)]
            estimate = paired(gains, 0.95)
            yield {
                "pruner": arm.title,
                "at once": workers,
                "trials": statistics.fmean(one.started for one in found),
                "steps": statistics.fmean(one.steps for one in found),
                "most steps": max(one.steps for one in found),
                "accuracy": 1 - statistics.fmean(one.loss for one in found),
                "behind the best": statistics.fmean(one.loss - best for one in found),
                "difference": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "not worse": statistics.fmean(gain >= 0 for gain in gains),
                "searches": [one._asdict() for one in found],
            }


def shown(name: str, result: dict[str, Any]) -> dict[str, object]:
    """One row of the printed table."""
    return {
        "set": name,
        "pruner": result["pruner"],
        "at once": result["at once"],
        "trials": f"{result['trials']:.0f}",
        "steps": f"{result['steps']:.0%} (most {result['most steps']:.0%})",
        "accuracy": f"{result['accuracy']:.4f}",
        "against no pruning": f"{result['difference']:+.4f} [{result['low']:+.4f}, {result['high']:+.4f}]",
        "the same or better": f"{result['not worse']:.0%}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("pruned_search", (__doc__ or "").split("\n\n")[0])
    add_data_option(options)
    options.add_argument("--sets", type=names, default=(HEADLINES, "trec"))
    options.add_argument("--pruners", type=names, default=("halving", "peer", "successive-halving", "median"))
    options.add_argument("--shares", type=fractions, default=(0.4,), help="also halving with these shares of the steps")
    options.add_argument("--pool", type=int, default=64, help="configurations that are recorded")
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--evaluate-every", type=int, default=10)
    options.add_argument("--evaluate-rows", type=int, default=256, help="validation rows of each evaluation")
    options.add_argument("--trials", type=int, default=24, help="of a search")
    options.add_argument("--searches", type=int, default=100)
    options.add_argument("--workers", type=numbers, default=(1, 4), metavar="N,N,…", help="trials at once")
    options.add_argument("--work", type=Path, default=Path("benchmark-curves"), metavar="FOLDER")
    args = options.parse_args(arguments)
    if args.quick:
        args.pool, args.steps, args.evaluate_every, args.evaluate_rows = 3, 4, 1, 16
        args.trials, args.searches, args.pruners, args.shares = 3, 2, ("halving",), (0.6,)
    if missing := first_missing(args.data, args.sets):
        print(missing)
        return 2
    report = Report("pruned_search", args)
    report.print_machine()
    rows = []
    for name in args.sets:
        curves = record(args, name)
        final = 1 - curves.curves[:, -1]
        report.append("pools", {"set": name, "accuracies": final.tolist()})
        print(f"{name}: best {final.max():.4f} of {len(final)}, {np.median(final):.4f} the median")
        for result in compare(curves, args):
            report.append("results", {"set": name, **result})
            rows.append(shown(name, result))
    print(table(rows))
    return 0


def fractions(text: str) -> tuple[float, ...]:
    """A comma-separated list of shares in (0, 1], as an option's type; may be empty."""
    return tuple(float(part) for part in text.split(",") if part)


if __name__ == "__main__":
    sys.exit(main())
