"""The packed engine against PEFT, per optimizer step of one trial: tokens per step x resident trials x precision.

Measures training steps only, in one process, all arms interleaved, after a warm-up: process CPU time and wall time.
Does not measure start-up, evaluation, slot files, Ray or SQL (`sweep_throughput` does), nor any GPU (`gpu_packed`).
Weights and tokens are random; every row has exactly the stated number of tokens, so padding plays no part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from automl.methods.eva import know_inputs
from automl.models.inventory import resolve_targets
from automl.packed import PackedTrainer, Workload
from automl.training.inputs import directions_of_inputs
from benchmarks.measure import Timing, gemm_peak, interleaved, peak_of, repetitions, spread, timed
from benchmarks.plain_peft import Exactness, PlainPeft, exactness, run_rounds
from benchmarks.report import Report, names, numbers, parser, table
from benchmarks.shapes import build, frozen_flops, mixed_trials, trial, workload

PEFT = "PEFT"

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "lora+": {"own": (("lora_plus_ratio", 4.0),)},
    "neftune": {"neftune_alpha": 5.0},
    "pissa": {"own": (("init", "pissa"),)},
    "olora": {"own": (("init", "olora"),)},
    "eva": {"own": (("init", "eva"),)},
    "lora-fa": {"own": (("freeze_a", True),)},
}
"""LoRA and what else of it is packed, by hyperparameters."""


class Setting(NamedTuple):
    """A model's shape, and the batch of one step of one trial."""

    shape: str
    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of one step of one trial."""
        return self.batch * self.length

    @property
    def name(self) -> str:
        """Name in the tables: `minilm b8 S64`."""
        return f"{self.shape} b{self.batch} S{self.length}"


SETTINGS = (
    Setting("minilm", 8, 64),
    Setting("minilm", 8, 12),
    Setting("minilm", 2, 64),
    Setting("smollm2-135m", 2, 64),
)
QUICK = (Setting("tiny-bert", 4, 8), Setting("tiny-llama", 2, 8))


class Arms:
    """All ways to train in one setting, each ready to run: PEFT, and packs in every precision and size.

    hyper: the same for every trial. seconds: that one measurement should take at least. variants: of LoRA, each with
    all ways of its own.
    """

    def __init__(
        self,
        setting: Setting,
        slots: Sequence[int],
        precisions: Sequence[str],
        seconds: float,
        hyper: Mapping[str, Any],
        variants: Sequence[str] = ("lora",),
    ) -> None:
        load = workload(setting.shape, tokens=setting.length)
        usual = {"batch_size": setting.batch, "schedule": "constant", "warmup": 0.0, **hyper}
        self._hypers = {variant: {**usual, **VARIANTS[variant]} for variant in variants}
        self._seconds = seconds
        self._peft = {
            variant: PlainPeft(_model(setting, load, variants), load, trial(0, **own))
            for variant, own in self._hypers.items()
        }
        self._trainers = {
            precision: PackedTrainer(_model(setting, load, variants), load, precision=precision)
            for precision in precisions
        }
        self.kernels = {precision: trainer.kernel for precision, trainer in self._trainers.items()}
        self._repetitions: dict[str, int] = {}
        self.runs: dict[str, Callable[[], Timing]] = {}
        for variant in variants:
            self.runs[of_variant(variant, PEFT)] = partial(self._step_alone, variant)
            for precision in precisions:
                for count in slots:
                    name = of_variant(variant, arm_name(precision, count))
                    self.runs[name] = partial(self._step_packed, name, variant, precision, count)

    def _step_alone(self, variant: str) -> Timing:
        peft = self._peft[variant]
        return self._per_step(of_variant(variant, PEFT), 1, lambda steps: [peft.take_step() for _ in range(steps)])

    def _step_packed(self, name: str, variant: str, precision: str, count: int) -> Timing:
        trainer = self._trainers[precision]
        for number in range(count):
            trainer.admit(trial(number, **self._hypers[variant]))
        try:
            return self._per_step(name, count, partial(run_rounds, trainer))
        finally:
            for number in range(count):
                trainer.evict(number)

    def _per_step(self, name: str, trials: int, take: Callable[[int], object]) -> Timing:
        """Time of one step of one trial. The first time, a first step warms up and a second says how many to time."""
        if name not in self._repetitions:
            take(1)
            self._repetitions[name] = repetitions(timed(lambda: take(1)).wall, self._seconds)
        steps = self._repetitions[name]
        return timed(lambda: take(steps)).per(steps * trials)


def arm_name(precision: str, count: int) -> str:
    """`packed fp32 K=8`."""
    return f"packed {precision} K={count}"


def of_variant(variant: str, arm: str) -> str:
    """`pissa: PEFT`; of plain LoRA the arm's name alone."""
    return arm if variant == "lora" else f"{variant}: {arm}"


def measure(
    setting: Setting,
    proofs: Sequence[Exactness],
    *,
    slots: Sequence[int],
    precisions: Sequence[str],
    rounds: int,
    seconds: float,
    hyper: Mapping[str, Any],
    peaks: Mapping[str, float],
    variants: Sequence[str] = ("lora",),
) -> dict[str, Any]:
    """Times of one setting, if its proofs hold. Without exactness there are none: what would they be the times of?"""
    result: dict[str, Any] = {
        "setting": setting._asdict() | {"tokens_per_step": setting.tokens, "name": setting.name},
        "hyper": dict(hyper),
        "exactness": [proof.as_json() for proof in proofs],
    }
    for proof in proofs:
        print(f"{setting.name}: {proof.text()}")
    if not all(proof.holds for proof in proofs):
        return result | {"arms": {}}
    arms = Arms(setting, slots, precisions, seconds, hyper, variants)
    flops = frozen_flops(build(setting.shape), setting.tokens)
    found = interleaved(arms.runs, rounds)
    bases = {name: spread([timing.cpu for timing in times]).median for name, times in found.items() if PEFT in name}
    rows = {name: _arm(times, bases[_own_peft(name)], flops, peaks) for name, times in found.items()}
    return result | {"kernels": arms.kernels, "frozen_gflop_per_step": flops / 1e9, "arms": rows}


def _model(setting: Setting, load: Workload, variants: Sequence[str]) -> torch.nn.Module:
    """The model, which knows its layers' inputs if a variant starts from them."""
    model = build(setting.shape)
    if "eva" in variants:
        layers = [layer.path for layer in resolve_targets(model, "all-linear")]
        batches = load.evaluation_batches(load.train_rows[:32], 1024, torch.device("cpu"))
        found = directions_of_inputs(model, layers, batches, partial(load.task.loss, model), trial(0).hyper.rank)
        know_inputs(model, lambda count: found)
    return model


def _own_peft(arm: str) -> str:
    """The arm that this one is compared with."""
    variant, _, _ = arm.rpartition(": ")
    return of_variant(variant or "lora", PEFT)


def prove(setting: Setting, precisions: Sequence[str], variants: Sequence[str] = ("lora",)) -> list[Exactness]:
    """The oracle on this model and batch, in each precision."""
    load = workload(setting.shape, tokens=setting.length)
    model = _model(setting, load, variants)
    trials = mixed_trials(setting.batch)
    usual: dict[str, Any] = {"steps": 40, "batch_size": setting.batch, "learning_rate": 1e-3, "warmup": 0.0}
    trials += [
        trial(number, **usual, **VARIANTS[variant]) for number, variant in enumerate(variants, start=len(trials))
    ]
    return [exactness(model, load, trials, precision=precision) for precision in precisions]


def _arm(timings: Sequence[Timing], base: float, flops: float, peaks: Mapping[str, float]) -> dict[str, Any]:
    cpu = spread([timing.cpu for timing in timings])
    rate = flops / cpu.median / 1e9
    return {
        "cpu_seconds": [timing.cpu for timing in timings],
        "wall_seconds": [timing.wall for timing in timings],
        "median_cpu_seconds": cpu.median,
        "ratio_to_peft": base / cpu.median,
        "gflops": rate,
        "share_of_peak": {name: rate / peak for name in ("fp32", "bf16h") if (peak := peak_of(peaks, name))},
    }


def rows_of(result: Mapping[str, Any]) -> list[dict[str, object]]:
    """Table rows of one setting."""
    return [
        {
            "setting": result["setting"]["name"],
            "tokens": result["setting"]["tokens_per_step"],
            "arm": name,
            "CPU ms per step": spread([1e3 * value for value in arm["cpu_seconds"]]).text(),
            "wall ms": spread([1e3 * value for value in arm["wall_seconds"]]).text(),
            "x PEFT": f"{arm['ratio_to_peft']:.2f}",
            "GF/s": f"{arm['gflops']:.1f}",
            "% fp32 peak": f"{100 * arm['share_of_peak'].get('fp32', 0):.0f}",
            "% bf16 peak": f"{100 * arm['share_of_peak'].get('bf16h', 0):.0f}",
        }
        for name, arm in result["arms"].items()
    ]


def peak_memory(setting: Setting, precision: str | None, count: int) -> int:
    """Peak resident bytes of a fresh process that trains `count` trials packed, or, without a precision, one by PEFT.

    Interpreter, libraries and model are in it for both.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_train_and_tell, args=(theirs, setting, precision, count, torch.get_num_threads()))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    finally:
        process.join()


def _train_and_tell(connection: Any, setting: Setting, precision: str | None, count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model, load = build(setting.shape), workload(setting.shape, tokens=setting.length)
    _train_a_little(model, load, setting, precision, count)
    connection.send(_peak_resident_bytes())


def _peak_resident_bytes() -> int:
    """The peak of this program alone: `ru_maxrss` would still know the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def _train_a_little(
    model: torch.nn.Module, load: Workload, setting: Setting, precision: str | None, count: int
) -> None:
    if precision is None:
        run = PlainPeft(model, load, trial(0, batch_size=setting.batch))
        for _ in range(5):
            run.take_step()
        run.evaluate()
        return
    trainer = PackedTrainer(model, load, precision=precision)
    for number in range(count):
        trainer.admit(trial(number, batch_size=setting.batch, steps=5))
    while any(not member.is_finished for member in trainer.members.values()):
        trainer.advance()


def _memory(setting: Setting, slots: Sequence[int], precisions: Sequence[str]) -> dict[str, Any]:
    count = 8 if 8 in slots else max(slots)
    alone = peak_memory(setting, None, 1)
    packed = {precision: peak_memory(setting, precision, count) for precision in precisions}
    for precision, peak in packed.items():
        print(
            f"{setting.name}: peak RSS of {count} resident trials in {precision} {peak / 2**20:.0f} MiB, "
            f"of one PEFT process {alone / 2**20:.0f} MiB: {peak / alone:.2f}x"
        )
    return {"setting": setting.name, "resident": count, "peft_bytes": alone, "packed_bytes": packed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if an oracle failed."""
    options = parser("packed_step", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--slots", type=numbers, default=(1, 4, 8), metavar="K,K,…", help="resident trials")
    options.add_argument("--precisions", type=names, default=("fp32", "bf16h"), metavar="P,P,…")
    options.add_argument(
        "--settings", type=names, default=(), metavar="TEXT,…", help="only those whose name has a TEXT"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=2.0, help="least duration of one measurement")
    options.add_argument("--threads", type=int, default=1, help="of torch")
    options.add_argument("--target", default="qv", help="target set of every trial")
    options.add_argument("--rank", type=int, default=8)
    options.add_argument("--dropout", type=float, default=0.0)
    options.add_argument(
        "--variants", type=names, default=("lora",), metavar="NAME,…", help=f"some of {', '.join(VARIANTS)}; or all"
    )
    options.add_argument("--no-memory", action="store_true", help="leave out the peak memory of fresh processes")
    args = options.parse_args(arguments)
    if args.variants == ("all",):
        args.variants = tuple(VARIANTS)
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        options.error(f"--variants: {unknown[0]!r} is not known; known are {', '.join(VARIANTS)}, all")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    report = Report("packed_step", args)
    report.print_machine()
    if args.quick:
        print("tiny models: this shows that the benchmark runs, its figures mean nothing")
    peaks = gemm_peak(seconds=0.2 if args.quick else 4.0)
    report.add("gemm_peak_gflops", peaks)
    print("GEMM peak, GF/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in peaks.items()))
    settings = [
        setting
        for setting in (QUICK if args.quick else SETTINGS)
        if not args.settings or any(part in setting.name for part in args.settings)
    ]
    rows: list[dict[str, object]] = []
    complete = True
    for setting in settings:
        result = measure(
            setting,
            prove(setting, args.precisions, args.variants),
            slots=args.slots,
            precisions=args.precisions,
            rounds=2 if args.quick else args.rounds,
            seconds=0.02 if args.quick else args.seconds,
            hyper={"target": args.target, "rank": args.rank, "dropout": args.dropout},
            peaks=peaks,
            variants=args.variants,
        )
        report.append("results", result)
        complete = complete and bool(result["arms"])
        rows += rows_of(result)
    print(table(rows))
    if not args.quick and not args.no_memory:
        for setting in settings:
            report.append("memory", _memory(setting, args.slots, args.precisions))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
