"""Whole sweeps: `automl search` through Ray against what a user would write with Ray Tune, HF Trainer, PEFT and Optuna.

Every arm trains the same configurations for the same steps with the same evaluations on the same rows; nothing is
pruned. Each run is a fresh command with empty caches, from its start to its end, so imports, Ray, model loading,
tokenising and the writing of results are in it. Does not measure what a search finds, pruning, several nodes or GPUs;
the baselines store nothing in SQL and sample nothing, which favours them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from automl.models.backbone import load_tokenizer
from automl.packed import PackedTrainer, Workload
from automl.setup.setup import for_one_trial, set_up
from automl.space.assemble import assemble
from automl.space.load import load_space
from automl.training.runtime import load_runtime
from automl.trial import TrialSpec
from benchmarks.measure import gemm_peak, interleaved, peak_of, spread, timed
from benchmarks.plain_peft import Exactness, exactness
from benchmarks.report import Report, names, parser, table
from benchmarks.shapes import frozen_flops
from benchmarks.sweep_arms import ARMS, ArmRun, run_arm
from benchmarks.sweep_world import Work, World, make_world

BASELINE = "tune-fresh"


class Probe(NamedTuple):
    """What one process of this machine does alone with this work, before the arms run.

    evaluation_seconds: for one packed evaluation, by precision. trial_flops: in frozen layers, of one whole trial.
    """

    proofs: list[Exactness]
    evaluation_seconds: dict[str, float]
    trial_flops: float


def probe(world: World, folder: Path) -> Probe:
    """Oracle, evaluation time and operations of this world's own model and rows."""
    space_file = folder / "probe.yaml"
    world.write_space(space_file, {"executor": "inline", "precision": "fp32", "threads": 1})
    spec = load_space(space_file)
    setup = set_up(for_one_trial(spec), folder / "cache", is_thorough=False)
    runtime = load_runtime(setup.worker_settings())
    load = Workload(
        task=runtime.task,
        train_rows=runtime.train_rows,
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=load_tokenizer(setup.inputs.backbone),
        evaluation_tokens=runtime.evaluation_tokens,
    )
    trials = [
        TrialSpec(
            number=number,
            params={},
            hyper=assemble(setup.inputs.space, {name: value for name, value in each.items() if name != "alpha"}),
            seed=number,
            data_seed=world.work.seed,
            steps=max(world.work.steps, 8),
            evaluate_every=max(world.work.steps, 8),
        )
        for number, each in enumerate(world.configurations[:4])
    ]
    precisions = ("fp32", "bf16h")
    return Probe(
        proofs=[exactness(runtime.model, load, trials, precision=precision) for precision in precisions],
        evaluation_seconds={name: _evaluation_seconds(runtime.model, load, trials[0], name) for name in precisions},
        trial_flops=_trial_flops(runtime.model, load, world.work),
    )


def _evaluation_seconds(model: Any, load: Workload, trial: TrialSpec, precision: str) -> float:
    trainer = PackedTrainer(model, load, precision=precision)
    try:
        trainer.admit(trial)
        member = trainer.members[trial.number]
        return min(timed(lambda: trainer.evaluate(member, load.evaluation_tokens)).wall for _ in range(3))
    finally:
        trainer.close()


def _trial_flops(model: Any, load: Workload, work: Work) -> float:
    """Operations for the mean row's tokens; padding is not counted."""
    lengths = [len(row["input_ids"]) for row in load.train_rows]
    trained = statistics.mean(lengths) * work.batch_size * work.steps
    evaluated = sum(len(row["input_ids"]) for row in load.evaluation_rows) * work.evaluations
    return frozen_flops(model, 1) * trained + frozen_flops(model, 1, backward=False) * evaluated


def measure(world: World, args: argparse.Namespace, peaks: Mapping[str, float], report: Report) -> dict[str, Any]:
    """Proofs and figures of one kind of work; no runs if the oracle fails. Every run is reported as soon as it ends."""
    found = probe(world, world.folder)
    result: dict[str, Any] = {
        "work": {name: getattr(world.work, name) for name in Work.__dataclass_fields__},
        "configurations": list(world.configurations),
        "exactness": [proof.as_json() for proof in found.proofs],
        "evaluation_seconds": found.evaluation_seconds,
        "trial_gflop": found.trial_flops / 1e9,
        "arms": {},
    }
    for proof in found.proofs:
        print(f"{world.work.name}: {proof.text()}", flush=True)
    if not all(proof.holds for proof in found.proofs):
        return result
    runs = interleaved({arm: partial(_logged_run, arm, world, args, report) for arm in args.arms}, args.rounds)
    result["arms"] = {arm: figures(each, world.work, found, peaks) for arm, each in runs.items()}
    return result


def _logged_run(arm: str, world: World, args: argparse.Namespace, report: Report) -> ArmRun:
    run = run_arm(arm, world, world.folder / "run", workers=args.workers, threads=args.threads)
    print(f"{world.work.name}: {arm} took {run.wall_seconds:.1f} s for {len(run.trials)} trials", flush=True)
    report.append("runs", {"work": world.work.name, **run.as_json()})
    return run


def figures(runs: Sequence[ArmRun], work: Work, found: Probe, peaks: Mapping[str, float]) -> dict[str, Any]:
    """Medians and ranges over the rounds of one arm.

    overhead: seconds that a worker spends per trial, once all slots have been filled, on anything but training and
    evaluating; automl's evaluations count as long as the probe's. share_not_training: overhead as a share of the
    workers' time, an upper bound of the time that they were idle. share_of_peak: the share that the trials needed
    of the products that all usable CPUs could do in the steady time.
    """
    precision = _precision(runs[0])
    evaluation = work.evaluations * found.evaluation_seconds[precision]
    cpus = len(os.sched_getaffinity(0))
    steady = [run.steady_seconds for run in runs]
    rate = work.trials * found.trial_flops / statistics.median(steady) / 1e9
    return {
        "precision": precision,
        "wall_seconds": spread([run.wall_seconds for run in runs])._asdict(),
        "trials_per_hour": 3600 * work.trials / statistics.median(run.wall_seconds for run in runs),
        "steady_seconds": spread(steady)._asdict(),
        "steady_trials_per_hour": 3600 * work.trials / statistics.median(steady),
        "seconds_to_first_trial": spread([run.first_start for run in runs])._asdict(),
        "overhead_seconds_per_trial": spread([_overhead(run, evaluation) for run in runs])._asdict(),
        "share_not_training": statistics.median(
            _overhead(run, evaluation) * work.trials / (run.workers * run.steady_seconds) for run in runs
        ),
        "mean_resident": statistics.median(run.mean_resident for run in runs),
        "peak_bytes": spread([run.peak_bytes for run in runs])._asdict(),
        "gflops": rate,
        "share_of_peak": {name: rate / (cpus * peak) for name in ("fp32", "bf16h") if (peak := peak_of(peaks, name))},
    }


def _precision(run: ArmRun) -> str:
    recorded = str((run.ground or {}).get("precision", "fp32"))
    return "bf16h" if recorded.startswith("bf16") else "fp32"


def _overhead(run: ArmRun, evaluation: float) -> float:
    known = sum(
        trial.train_seconds + (evaluation if trial.evaluation_seconds is None else trial.evaluation_seconds)
        for trial in run.trials
    )
    return (run.workers * run.steady_seconds - known) / len(run.trials)


def rows_of(result: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Table rows of one kind of work."""
    arms = result["arms"]
    for name, arm in arms.items():
        base = arms.get(BASELINE)
        yield {
            "work": result["work"]["name"],
            "arm": name,
            "precision": arm["precision"],
            "wall s": _range(arm["wall_seconds"]),
            "trials/h": f"{arm['trials_per_hour']:.0f}",
            "x (a)": _ratio(arm, base, "trials_per_hour"),
            "steady trials/h": f"{arm['steady_trials_per_hour']:.0f}",
            "x (a) ": _ratio(arm, base, "steady_trials_per_hour"),
            "s to first": _range(arm["seconds_to_first_trial"]),
            "overhead s/trial": _range(arm["overhead_seconds_per_trial"], 2),
            "% other": f"{100 * arm['share_not_training']:.1f}",
            "resident": f"{arm['mean_resident']:.1f}",
            "peak RSS MiB": f"{arm['peak_bytes']['median'] / 2**20:.0f}",
            "% fp32 peak": f"{100 * arm['share_of_peak'].get('fp32', 0):.0f}",
            "% bf16 peak": f"{100 * arm['share_of_peak'].get('bf16h', 0):.0f}",
        }


def _range(values: Mapping[str, float], digits: int = 1) -> str:
    return f"{values['median']:.{digits}f} ({values['low']:.{digits}f}–{values['high']:.{digits}f})"


def _ratio(arm: Mapping[str, Any], base: Mapping[str, Any] | None, key: str) -> str:
    return f"{arm[key] / base[key]:.2f}" if base else "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if an oracle failed."""
    cpus = len(os.sched_getaffinity(0))
    options = parser("sweep_throughput", (__doc__ or "").split("\n\n")[0])
    default_arms = [arm for arm in ARMS if arm != "ours-inline"]
    options.add_argument("--arms", type=names, default=tuple(default_arms), help=f"of {', '.join(ARMS)}")
    options.add_argument("--trials", type=int, default=24)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--evaluations", type=int, default=2, help="of each trial")
    options.add_argument("--rows", type=int, default=200, help="of each evaluation")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workers", type=int, default=cpus, help="of the baselines; automl chooses for itself")
    options.add_argument("--threads", type=int, default=1, help="of each worker of the baselines")
    options.add_argument(
        "--fixed-cost",
        action="store_true",
        help="also trials of one step and 8 rows: what a trial costs beside training",
    )
    args = options.parse_args(arguments)
    unknown = sorted(set(args.arms) - set(ARMS))
    if unknown:
        options.error(f"--arms: unknown {', '.join(unknown)}; known: {', '.join(ARMS)}")
    if args.steps % args.evaluations:
        options.error(f"--steps {args.steps} is not a multiple of --evaluations {args.evaluations}")
    return _run(args)


def _works(args: argparse.Namespace) -> Iterator[Work]:
    if args.quick:
        yield Work(
            name="quick",
            trials=min(args.trials, 4),
            steps=4,
            evaluate_every=2,
            evaluation_rows=20,
            train_rows=60,
            max_length=16,
        )
        return
    yield Work(
        name=f"{args.trials} x {args.steps}",
        trials=args.trials,
        steps=args.steps,
        evaluate_every=args.steps // args.evaluations,
        evaluation_rows=args.rows,
    )
    if args.fixed_cost:
        yield Work(name="fixed cost", trials=args.trials, steps=1, evaluate_every=1, evaluation_rows=8)


def _run(args: argparse.Namespace) -> int:
    if args.quick:
        args.rounds = 1
        print("a tiny model and few steps: this shows that the benchmark runs, its figures mean nothing")
    report = Report("sweep_throughput", args)
    report.print_machine()
    peaks = gemm_peak(threads=1, seconds=0.2 if args.quick else 4.0)
    report.add("gemm_peak_gflops_of_one_cpu", peaks)
    print("GEMM peak of one CPU, GF/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in peaks.items()))
    rows: list[dict[str, object]] = []
    complete = True
    for work in _works(args):
        with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
            result = measure(make_world(Path(folder), work, quick=args.quick), args, peaks, report)
        report.append("results", result)
        complete = complete and bool(result["arms"])
        rows += rows_of(result)
    print(table(rows))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
