"""Packed training against sequential PEFT on one GPU: tokens per step x resident trials x size of the model.

Measures training steps of decoders built from their configuration, random weights and tokens, every token a target.
Wall time with the device waited for, arms interleaved; sequential PEFT costs the same per trial whatever K is. The pack
is what a search uses on a GPU: slots computed together, micro-steps replayed from CUDA graphs; --causes adds it without
graphs, and slot by slot. Where memory is too short for an arm, the arm says so and has no time. Does not measure
loading, evaluation, data loaders, Ray or SQL, and nothing about quality. Needs neither Ray nor the Hub.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from automl.errors import OutOfMemory, is_out_of_memory
from automl.packed import PackedTrainer
from automl.packed.bank import BankSize
from automl.packed.kernels import choose_kernel
from automl.trial import TrialSpec
from benchmarks.measure import Timing, interleaved, repetitions, spread, timed
from benchmarks.plain_peft import Exactness, PlainPeft, exactness, run_rounds
from benchmarks.report import Report, names, numbers, parser, table
from benchmarks.shapes import build, frozen_flops, mixed_trials, trial, workload

PEFT = "PEFT, one trial"
BATCHES = {128: (2, 64), 512: (4, 128), 2048: (8, 256)}
"""Tokens per step -> rows and tokens per row."""

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
"""Precision of both arms -> the type in which the backbone is stored and autocast computes, None = float32 alone."""

CAUSES: dict[str, dict[str, Any]] = {"packed": {}, "without graphs": {"graphs": False}, "slot by slot": {"bank": None}}
"""Arms -> what their trainers are told beside the bank."""

WARM_UP = 4
"""Steps before anything is measured: a shape is recorded as a graph when it comes for the third time."""


class Cell:
    """One model with one batch: PEFT and packs of several sizes, ready to run on the device.

    All arms train on the same copy of the frozen model, one after the other; a pack has room for its own trials alone.
    ranks: of the trials in turn, if they differ. model: in the place of the one that is built of the shape.
    """

    def __init__(
        self,
        shape: str,
        tokens: int,
        slots: Sequence[int],
        *,
        device: str,
        precision: str,
        seconds: float,
        hyper: Mapping[str, Any],
        causes: Sequence[str] = ("packed",),
        ranks: Sequence[int] = (),
        model: nn.Module | None = None,
    ) -> None:
        self.shape, self.tokens, self.device = shape, tokens, device
        self.batch, self.length = BATCHES.get(tokens) or (2, tokens // 2)
        self.out_of_memory: dict[str, str] = {}
        self.graphs: dict[str, int] = {}
        self._precision, self._autocast = precision, PRECISIONS[precision]
        self._model = model or build(shape, device=device, dtype=self._autocast or torch.float32)
        self._load = workload(shape, tokens=self.length, evaluation_rows=1)
        self._hyper = {"batch_size": self.batch, "schedule": "constant", "warmup": 0.0, **hyper}
        self._ranks = ranks or (int(hyper["rank"]),)
        self._seconds = seconds
        self._repetitions: dict[str, int] = {}
        self.kernel = choose_kernel(precision, torch.device(device))
        self.idle_bytes = _allocated(device)
        self.runs: dict[str, Callable[[], tuple[Timing, int] | None]] = {PEFT: partial(self._unless_short, PEFT)} | {
            name: partial(self._unless_short, name, cause, count)
            for cause in causes
            for count in slots
            for name in (f"{cause} K={count}",)
        }

    def proofs(self) -> list[Exactness]:
        """The oracle on this model and batch, in float32 and in the precision of the pack.

        Without dropout: slots computed together have masks of their own kind, which the tests compare.
        """
        model = build(self.shape, device=self.device)
        load = workload(self.shape, tokens=self.length, evaluation_rows=1)
        trials = [replace(each, hyper=replace(each.hyper, dropout=0.0)) for each in mixed_trials(self.batch)]
        bank = BankSize(len(trials), max(each.hyper.rank for each in trials), _targets(trials))
        return [
            exactness(
                model,
                load,
                trials,
                precision=precision,
                steps=WARM_UP + 4,
                packed=build(self.shape, device=self.device, dtype=PRECISIONS[precision] or torch.float32),
                bank=bank,
            )
            for precision in dict.fromkeys(("fp32", self._precision))
        ]

    def difference(self, steps: int = 2) -> float:
        """Largest relative difference of a loss of two packed trials to PEFT's, both in the precision of the arms."""
        trials = [trial(number, **self._own(number)) for number in range(2)]
        alone = []
        for each in trials:
            with self._peft(each) as peft:
                alone.append([float(peft.take_step()) for _ in range(steps)])
        with self._trainer("packed", len(trials)) as trainer:
            for each in trials:
                trainer.admit(each)
            found: list[list[float]] = [[] for _ in trials]
            for _ in range(steps):
                run_rounds(trainer, 1)
                for losses, member in zip(found, trainer.members.values(), strict=True):
                    losses.append(float(member.loss))
        pairs = zip(chain(*found), chain(*alone), strict=True)
        return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)

    def _own(self, number: int) -> dict[str, Any]:
        return {**self._hyper, "rank": self._ranks[number % len(self._ranks)]}

    def _unless_short(self, name: str, cause: str = "", count: int = 0) -> tuple[Timing, int] | None:
        """What was measured; None if memory is too short for the arm, with its reason in `out_of_memory`."""
        if name in self.out_of_memory:
            return None
        try:
            return self._step_packed(name, cause, count) if count else self._step_alone()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory[name] = str(error).split("\n", maxsplit=1)[0]
        _free()
        return None

    def _step_alone(self) -> tuple[Timing, int]:
        with self._peft(trial(0, **self._own(0))) as peft:
            return self._measured(PEFT, 1, lambda steps: [peft.take_step() for _ in range(steps)])

    def _step_packed(self, name: str, cause: str, count: int) -> tuple[Timing, int]:
        with self._trainer(cause, count) as trainer:
            for number in range(count):
                trainer.admit(trial(number, **self._own(number)))
            found = self._measured(name, count, partial(run_rounds, trainer))
            self.graphs[name] = trainer.bank_step.graphs if trainer.bank_step else 0
            return found

    @contextmanager
    def _peft(self, spec: TrialSpec) -> Iterator[PlainPeft]:
        peft = PlainPeft(self._model, self._load, spec, autocast=self._autocast, is_fast=True)
        try:
            yield peft
        finally:
            peft.close()
            _free()

    @contextmanager
    def _trainer(self, cause: str, count: int) -> Iterator[PackedTrainer]:
        """Raises OutOfMemory if there is no room for the slots together: one by one they are another arm."""
        bank = BankSize(count, max(self._ranks), (str(self._hyper["target"]),))
        options: dict[str, Any] = {"precision": self._precision, "bank": bank, **CAUSES[cause]}
        trainer = PackedTrainer(self._model, self._load, **options)
        try:
            if options["bank"] is not None and trainer.bank_step is None:
                raise OutOfMemory(f"there is no memory for a bank of {count} slots")
            yield trainer
        finally:
            trainer.close()
            del trainer
            _free()

    def _measured(self, name: str, trials: int, take: Callable[[int], object]) -> tuple[Timing, int]:
        """Time of one step of one trial, and the peak of the device's memory above the idle model."""
        wait = partial(_wait, self.device)
        timed(lambda: take(WARM_UP), finish=wait)
        if name not in self._repetitions:
            self._repetitions[name] = repetitions(timed(lambda: take(1), finish=wait).wall, self._seconds)
        steps = self._repetitions[name]
        _reset_peak(self.device)
        return timed(lambda: take(steps), finish=wait).per(steps * trials), _peak(self.device) - self.idle_bytes


def _targets(trials: Sequence[TrialSpec]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.hyper.target for each in trials))


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """Exactness and, if it holds, times of one cell."""
    proofs = cell.proofs()
    result: dict[str, Any] = {
        "model": cell.shape,
        "tokens_per_step": cell.tokens,
        "batch": cell.batch,
        "length": cell.length,
        "kernel": cell.kernel,
        "models_bytes": cell.idle_bytes,
        "exactness": [proof.as_json() for proof in proofs],
        "arms": {},
    }
    for proof in proofs:
        print(f"{cell.shape}, {cell.tokens} tokens: {proof.text()}")
    if all(proof.holds for proof in proofs):
        found = interleaved(cell.runs, rounds)
        flops = frozen_flops(build(cell.shape, device="meta"), cell.tokens)
        result["frozen_gflop_per_step"] = flops / 1e9
        result["arms"] = arms_of(cell, found, flops)
    return result


def arms_of(
    cell: Cell, found: Mapping[str, Sequence[tuple[Timing, int] | None]], flops: float
) -> dict[str, dict[str, Any]]:
    """What was measured of every arm, or why memory was too short for it. flops: of one trial's step."""
    times = {name: [each for each in rounds if each] for name, rounds in found.items()}
    base = spread([timing.wall for timing, _ in times[PEFT]]).median if times[PEFT] else math.nan
    return {
        name: {"out_of_memory": cell.out_of_memory[name]}
        if name in cell.out_of_memory
        else _arm(rounds, base, flops) | {"graphs": cell.graphs.get(name, 0)}
        for name, rounds in times.items()
    }


def _arm(rounds: Sequence[tuple[Timing, int]], base: float, flops: float) -> dict[str, Any]:
    wall = spread([timing.wall for timing, _ in rounds]).median
    return {
        "wall_seconds": [timing.wall for timing, _ in rounds],
        "cpu_seconds": [timing.cpu for timing, _ in rounds],
        "peak_bytes_above_models": max(peak for _, peak in rounds),
        "median_wall_seconds": wall,
        "ratio_to_peft": None if math.isnan(base) else base / wall,
        "tflops": flops / wall / 1e12,
    }


def rows_of(result: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Table rows of one cell."""
    for name, arm in result["arms"].items():
        row: dict[str, object] = {"model": result["model"], "tokens": result["tokens_per_step"], "arm": name}
        if "out_of_memory" in arm:
            yield row | {"ms per step": "out of memory"}
            continue
        ratio = arm["ratio_to_peft"]
        yield row | {
            "ms per step": spread([1e3 * value for value in arm["wall_seconds"]]).text(2),
            "x PEFT": "-" if ratio is None else f"{ratio:.2f}",
            "host ms": f"{1e3 * spread(arm['cpu_seconds']).median:.2f}",
            "TFLOP/s": f"{arm['tflops']:.2f}",
            "GiB above models": f"{arm['peak_bytes_above_models'] / 2**30:.1f}",
        }


def device_description(device: str) -> dict[str, Any]:
    """The GPU, its driver's CUDA version, and its peak of a bf16 and a fp32 product (TFLOP/s)."""
    if device == "cpu":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "gemm_peak_tflops": {"bf16": _gemm_tflops(torch.bfloat16), "fp32": _gemm_tflops(torch.float32)},
    }


def _gemm_tflops(dtype: torch.dtype, size: int = 4096, number: int = 20) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    torch.cuda.synchronize()
    best = min(timed(lambda: [a @ b for _ in range(number)], finish=torch.cuda.synchronize).wall for _ in range(4))
    return 2e-12 * size**3 * number / best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int:
    return 0 if device == "cpu" else int(torch.cuda.max_memory_allocated())


def _allocated(device: str) -> int:
    return 0 if device == "cpu" else int(torch.cuda.memory_allocated())


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def exact_products() -> Iterator[None]:
    """float32 means float32 inside the block: no TF32 in products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if an oracle failed, 2 without a GPU."""
    options = parser("gpu_packed", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--models", type=names, default=("0.1b", "0.4b", "1b"), metavar="NAME,…")
    options.add_argument("--tokens", type=numbers, default=tuple(BATCHES), metavar="N,N,…", help="per step of a trial")
    options.add_argument("--slots", type=numbers, default=(1, 2, 4, 8, 16, 32, 64), metavar="K,K,…")
    options.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of both arms")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--seconds", type=float, default=0.5, help="least duration of one measurement")
    options.add_argument("--target", default="all-linear")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--dropout", type=float, default=0.0)
    options.add_argument("--causes", action="store_true", help="also without graphs, and slot by slot")
    args = options.parse_args(arguments)
    if not args.quick and not torch.cuda.is_available():
        print("gpu_packed needs a CUDA device and torch sees none; --quick runs a tiny model on the CPU")
        return 2
    if args.quick:
        args.models, args.tokens, args.slots = ("tiny-llama",), (16,), (1, 4)
        args.rounds, args.seconds = 2, 0.02
        print("a tiny model: this shows that the benchmark runs, its figures mean nothing")
    with exact_products():
        return _run(args, "cuda" if torch.cuda.is_available() else "cpu")


def _run(args: argparse.Namespace, device: str) -> int:
    report = Report("gpu_packed", args)
    report.print_machine()
    report.add("device", device_description(device))
    print(", ".join(f"{name}: {value}" for name, value in report.document["device"].items()))
    rows: list[dict[str, object]] = []
    complete = True
    for model in args.models:
        for tokens in args.tokens:
            cell = Cell(
                model,
                tokens,
                args.slots,
                device=device,
                precision=args.precision,
                seconds=args.seconds,
                hyper={"target": args.target, "rank": args.rank, "dropout": args.dropout},
                causes=tuple(CAUSES) if args.causes else ("packed",),
            )
            result = measure(cell, args.rounds)
            report.append("results", result)
            complete = complete and bool(result["arms"])
            rows += rows_of(result)
            print(table(rows[-len(result["arms"]) :] if result["arms"] else []))
            del cell
            _free()
    print(table(rows))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
