"""One search run twice, packed and one trial at a time with PEFT: the same trials, curves and winner, and both times.

    python -m benchmarks.packed_solo search_spaces/bbc-topics.yaml --trials 8

Both runs are in fp32 with the same seed. The sampler is random and nothing is pruned: a sampler that learns proposes
by what it knows at that moment, which depends on how many trials run at the same time, so packed and solo searches are
different samples of the same search there. Returns 1 unless parameters and winner are the same and every loss agrees
to 1e-4. Does not measure what pruning or a learning sampler gain.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from automl.results.folders import cache_folder
from automl.results.recorded import WORKERS
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from automl.trial import Metrics
from benchmarks.report import Report, parser, table

TOLERANCE = 1e-4
"""Relative, of a loss: rounding differs by 1e-7 in a step and grows with the steps."""


class Outcome(NamedTuple):
    """What one search found. curves: metrics by trial and step. idle: share of the workers' time, None if unknown."""

    name: str
    seconds: float
    best: int
    value: float
    params: Mapping[int, Mapping[str, object]]
    curves: Mapping[tuple[int, int], Metrics]
    idle: float | None


def run(name: str, spec: SweepSpec) -> Outcome:
    """Carry out the search in folders of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        url = f"sqlite:///{folder}/automl.db"
        own = replace(spec, storage_url=url, run=replace(spec.run, output=Path(folder) / "output"))
        began = time.perf_counter()
        summary = run_sweep(own, cache_folder())
        seconds = time.perf_counter() - began
        assert summary.best is not None
        with open_database(url, create=False, read_only=True) as database:
            store = database.store(spec.study)
            curves = {(item.trial, item.step): item.metrics for item in store.measurements()}
            starts = (store.last_event(WORKERS) or {"starts": []})["starts"]
            study = database.optuna_storage()
            trials = study.get_all_trials(study.get_study_id_from_name(spec.study))
    busy, idle = (sum(start[key] for start in starts) for key in ("busy_seconds", "idle_seconds"))
    return Outcome(
        name=name,
        seconds=seconds,
        best=summary.best.number,
        value=summary.best.value,
        params={trial.number: trial.params for trial in trials},
        curves=curves,
        idle=idle / (busy + idle) if starts else None,
    )


def distance(one: Outcome, other: Outcome, metric: str) -> float:
    """Largest relative difference of a metric at any step of any trial; infinite if one has other steps."""
    if one.curves.keys() != other.curves.keys():
        return float("inf")
    pairs = [(metrics[metric], other.curves[place][metric]) for place, metrics in one.curves.items()]
    return max(abs(left - right) / max(abs(left), abs(right), 1e-12) for left, right in pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if the two searches differ."""
    options = parser("packed_solo", (__doc__ or "").split("\n\n")[0])
    options.add_argument("space", type=Path, nargs="?", default=Path("search_spaces/bbc-topics.yaml"))
    options.add_argument("--trials", type=int, default=8)
    options.add_argument("--steps", type=int, help="of a trial; as in the space file unless given")
    options.add_argument("--executor", choices=["ray", "inline"], help="as in the space file unless given")
    args = options.parse_args(arguments)
    spec = load_space(args.space)
    steps = 2 if args.quick else args.steps or spec.search.steps
    every = min(spec.search.evaluate_every, steps)
    search = replace(
        spec.search, sampler="random", pruner="none", trials=args.trials, steps=steps, evaluate_every=every
    )
    executor = args.executor or spec.run.executor
    spec = replace(spec, search=search, run=replace(spec.run, precision="fp32", executor=executor))
    report = Report("packed_solo", args)
    report.print_machine()
    outcomes = []
    for name, slots in (("packed", None), ("solo", 1)):
        outcomes.append(run(name, replace(spec, run=replace(spec.run, slots=slots))))
        print(f"{name} took {outcomes[-1].seconds:.1f} s", flush=True)
    packed, solo = outcomes
    apart = {name: distance(packed, solo, name) for name in next(iter(packed.curves.values()))}
    same = packed.params == solo.params and packed.best == solo.best and apart["loss"] <= TOLERANCE
    report.add("largest_relative_difference", apart)
    report.add("same", same)
    for each in outcomes:
        report.append("runs", {"name": each.name, "seconds": each.seconds, "best": each.best, "idle": each.idle})
    print(table([row(each) for each in outcomes]))
    print(f"largest relative difference of a loss: {apart['loss']:.1e}; same parameters and winner: {same}")
    return 0 if same else 1


def row(outcome: Outcome) -> dict[str, object]:
    """One row of the table."""
    idle = "–" if outcome.idle is None else f"{100 * outcome.idle:.1f}"
    return {
        "search": outcome.name,
        "seconds": f"{outcome.seconds:.1f}",
        "best trial": outcome.best,
        "value": f"{outcome.value:.4f}",
        "workers idle %": idle,
    }


if __name__ == "__main__":
    sys.exit(main())
