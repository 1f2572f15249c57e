"""How well the importances of modules repeat when only the seed changes: rank correlations between trainings.

One configuration is trained once for each seed by `automl search` (MiniLM, all linear layers); a seed fixes the adapter
at the start, the dropout and the order of the batches. Printed is the Spearman correlation of the 36 modules'
sensitivities over all pairs of seeds, of one set and between sets. Finished trainings stay in --work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

from automl.importance.aggregate import module_scores, spearman
from automl.space.load import load_space
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from benchmarks.report import Report, names, parser, table
from benchmarks.text_sets import HEADLINES, add_data_option, first_missing, model_and_task

SPACE = """version: 1
study: {study}
{task}
space: {{learning_rate: {{type: categorical, choices: [{rate}]}}}}
fixed: {{rank: {rank}, alpha: {alpha}, target: all-linear, batch_size: 16, max_length: 24}}
search: {{sampler: random, pruner: none, trials: 1, steps: {steps}, evaluate_every: {steps}, seed: {seed}}}
run: {{executor: inline, output: "{work}"}}
storage: {{url: "sqlite:///{work}/{study}.db"}}
"""


def train(args: argparse.Namespace, name: str, seed: int) -> list[float]:
    """Scores of all modules after one training, in the order of the model."""
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    study = f"{name}-{seed}"
    text = SPACE.format(
        study=study,
        task=model_and_task(args.data, name),
        rate=args.learning_rate,
        rank=args.rank,
        alpha=2 * args.rank,
        steps=args.steps,
        seed=seed,
        work=work,
    )
    path = work / f"{study}.yaml"
    path.write_text(text, encoding="utf-8")
    spec = load_space(path)
    run_sweep(spec, work / "cache")
    with open_database(spec.storage_url, create=False) as database:
        (importances,) = database.importances(study).values()
    return list(module_scores(importances).values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, and return 1 if a set's mean is below the goal."""
    options = parser("importance_stability", (__doc__ or "").split("\n\n")[0])
    add_data_option(options)
    options.add_argument("--sets", type=names, default=(HEADLINES, "trec"))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--rank", type=int, default=8)
    options.add_argument("--learning-rate", type=float, default=2e-3)
    options.add_argument("--goal", type=float, default=0.8)
    options.add_argument("--work", type=Path, default=Path("benchmark-importance"), metavar="FOLDER")
    args = options.parse_args(arguments)
    if args.quick:
        args.seeds, args.steps, args.goal = 2, 7, -1.0
    if missing := first_missing(args.data, args.sets):
        print(missing)
        return 2
    report = Report("importance_stability", args)
    report.print_machine()
    scores = {name: [train(args, name, seed) for seed in range(1, args.seeds + 1)] for name in args.sets}
    found = {name: [spearman(*pair) for pair in combinations(scores[name], 2)] for name in args.sets}
    means = {name: statistics.fmean(values) for name, values in found.items()}
    for first, second in combinations(args.sets, 2):
        found[f"{first} against {second}"] = [spearman(*pair) for pair in product(scores[first], scores[second])]
    rows = []
    for name, values in found.items():
        report.append("results", {"set": name, "correlations": values})
        mean, low, high = statistics.fmean(values), min(values), max(values)
        rows.append(
            {"set": name, "pairs": len(values), "mean": f"{mean:.2f}", "least": f"{low:.2f}", "most": f"{high:.2f}"}
        )
    report.add("scores", scores)
    print(table(rows))
    return 0 if min(means.values()) >= args.goal else 1


if __name__ == "__main__":
    sys.exit(main())
