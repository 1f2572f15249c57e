"""What pruning costs in quality and saves in steps on real LoRA curves.

Records the curves of a pool of random configurations, all trained to the end (`automl search`, MiniLM), and then
searches in that pool again and again through the product's own path, with each pruner and without any: share of the
steps of an unpruned search, and the difference of the winners' final accuracies, paired by the seed of the sampler.
Winners are chosen by validation rows and compared on test rows: the more trials end, the more a best validation value
owes to luck. A pool stays in --work, so the command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

from automl.execution.dispatch import Dispatcher
from automl.execution.inline import InlineExecutor
from automl.execution.simulated import CurveTable, TableHost
from automl.results.recorded import GROUND
from automl.setup.setup import for_one_trial, set_up
from automl.space.load import load_space
from automl.space.spec import SearchSettings, SearchSpace, SweepSpec
from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from automl.study.study import Study
from automl.sweep.run import run_sweep
from automl.training.export import evaluate_export
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
search:
  {{sampler: random, pruner: none, trials: {pool}, steps: {steps}, evaluate_every: {every}, seed: 1, keep: {pool}}}
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
        """Name in the table."""
        return self.pruner if self.share is None else f"{self.pruner}, {self.share:.0%} of the steps"


class Pool(NamedTuple):
    """Recorded trainings. curves: losses (1 - accuracy) on validation rows; that of a diverged trial ends in infinity.

    test: accuracy of each at its end on the test rows, 0 if it diverged.
    """

    curves: CurveTable
    test: Sequence[float]


class Found(NamedTuple):
    """How a search ended. steps: share of an unpruned search's. started: trials.

    accuracy, validation: those of its winner at its end, on test rows and on the rows it was chosen by.
    """

    steps: float
    accuracy: float
    validation: float
    started: int


def record(args: argparse.Namespace, name: str) -> Pool:
    """Train what is missing of a data set's pool."""
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
        known = list_trials(database, name)
        trials = {trial.number: trial.params for trial in known if trial.number < args.pool}
        adapters = {trial.number: trial.adapter for trial in known if trial.number in trials}
        settled = store.last_event(GROUND)
        measured = [item for item in store.measurements() if item.trial in trials]
    rows = {number: row for row, number in enumerate(sorted(trials))}
    curves = np.full((len(rows), math.ceil(args.steps / args.evaluate_every)), np.inf)
    for item in measured:
        curves[rows[item.trial], math.ceil(item.step / args.evaluate_every) - 1] = 1 - item.metrics["accuracy"]
    table = CurveTable(
        names=COLUMNS,
        configurations=np.array([[_number(name, trials[number][name]) for name in COLUMNS] for number in rows]),
        curves=curves,
        log=frozenset(LOG),
    )
    return Pool(table, tested(spec, settled or {}, work, [adapters[number] for number in rows]))


def tested(spec: SweepSpec, settled: dict[str, Any], work: Path, adapters: Sequence[str | None]) -> list[float]:
    """Accuracy of every adapter on the test rows, measured once; 0 where there is none."""
    known = work / f"{spec.study}-test.json"
    if not known.exists():
        setup = set_up(for_one_trial(spec), work / "cache", settled, is_thorough=False)
        settings = replace(setup.worker_settings(), prepared=setup.inputs.prepared)
        found = [evaluate_export(Path(each), settings, "test")["accuracy"] if each else 0.0 for each in adapters]
        known.write_text(json.dumps(found), encoding="utf-8")
    accuracies: list[float] = json.loads(known.read_text(encoding="utf-8"))
    return accuracies


def _number(name: str, value: Scalar) -> float:
    return float(TARGETS.index(str(value))) if name == "target" else float(value)


def search(pool: Pool, arm: Arm, seed: int, workers: int, trials: int) -> Found:
    """One search with the default sampler. trials: how many an unpruned search has."""
    curves = pool.curves
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
    return Found(host.evaluations / unpruned, pool.test[host.rows[best.number]], 1 - best.value, len(host.rows))


def compare(pool: Pool, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm against the unpruned search with the same seeds."""
    arms = [Arm(pruner) for pruner in args.pruners] + [Arm("halving", share) for share in args.shares]
    for workers in args.workers:
        full = [search(pool, Arm("none"), seed, workers, args.trials) for seed in range(args.searches)]
        for arm in arms:
            found = [search(pool, arm, seed, workers, args.trials) for seed in range(args.searches)]
            gains = [one.accuracy - each.accuracy for one, each in zip(found, full, strict=True)]
            luck = [one.validation - each.validation for one, each in zip(found, full, strict=True)]
            estimate, seen = paired(gains, 0.95), paired(luck, 0.95)
            yield {
                "pruner": arm.title,
                "at once": workers,
                "trials": statistics.fmean(one.started for one in found),
                "steps": statistics.fmean(one.steps for one in found),
                "most steps": max(one.steps for one in found),
                "accuracy": statistics.fmean(one.accuracy for one in found),
                "difference": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "on validation rows": {"difference": seen.mean, "low": seen.low, "high": seen.high},
                "not worse": statistics.fmean(gain >= 0 for gain in gains),
                "searches": [one._asdict() for one in found],
            }


def shown(name: str, result: dict[str, Any]) -> dict[str, object]:
    """One row of the printed table."""
    seen = result["on validation rows"]
    return {
        "set": name,
        "pruner": result["pruner"],
        "at once": result["at once"],
        "trials": f"{result['trials']:.0f}",
        "steps": f"{result['steps']:.0%} (most {result['most steps']:.0%})",
        "test accuracy": f"{result['accuracy']:.4f}",
        "against no pruning": f"{result['difference']:+.4f} [{result['low']:+.4f}, {result['high']:+.4f}]",
        "on validation rows": f"{seen['difference']:+.4f} [{seen['low']:+.4f}, {seen['high']:+.4f}]",
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
        pool = record(args, name)
        final = 1 - pool.curves.curves[:, -1]
        report.append("pools", {"set": name, "accuracies": final.tolist(), "test": list(pool.test)})
        test, chosen = np.array(pool.test), int(final.argmax())
        print(f"{name}: {len(final)} trainings, best {test.max():.4f} on test rows, {np.median(test):.4f} the median;")
        print(f"    best {final.max():.4f} on validation rows, and {test[chosen]:.4f} on test rows the same training")
        for result in compare(pool, args):
            report.append("results", {"set": name, **result})
            rows.append(shown(name, result))
    print(table(rows))
    return 0


def fractions(text: str) -> tuple[float, ...]:
    """A comma-separated list of shares in (0, 1], as an option's type; may be empty."""
    return tuple(float(part) for part in text.split(",") if part)


if __name__ == "__main__":
    sys.exit(main())
