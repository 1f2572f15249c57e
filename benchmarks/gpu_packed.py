"""Packed training against sequential PEFT on one GPU: tokens per step x resident trials x size of the model.

Measures training steps of decoders built from their configuration, random weights and tokens, every token a target.
Wall time with the device waited for, arms interleaved; sequential PEFT costs the same per trial whatever K is. The pack
is what a search uses on a GPU: slots computed together, micro-steps replayed from CUDA graphs; --causes adds it without
graphs, and slot by slot. Does not measure loading, evaluation, data loaders, Ray or SQL, and nothing about quality.
Needs neither Ray nor the Hub.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from automl.packed import PackedTrainer
from automl.packed.bank import BankSize
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
    """One model with one batch: PEFT and packs of several sizes, ready to run on the device."""

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
    ) -> None:
        self.shape, self.tokens, self.device = shape, tokens, device
        self.batch, self.length = BATCHES.get(tokens) or (2, tokens // 2)
        self.out_of_memory: list[str] = []
        autocast = PRECISIONS[precision]
        self._precision, self._stored = precision, autocast or torch.float32
        load = workload(shape, tokens=self.length, evaluation_rows=1)
        self._hyper = {"batch_size": self.batch, "schedule": "constant", "warmup": 0.0, **hyper}
        self._seconds = seconds
        self._repetitions: dict[str, int] = {}
        self._peft = PlainPeft(
            build(shape, device=device, dtype=self._stored),
            load,
            trial(0, **self._hyper),
            autocast=autocast,
        )
        self._bank = BankSize(max(slots), int(hyper["rank"]), (str(hyper["target"]),))
        self._trainers = {
            cause: PackedTrainer(
                build(shape, device=device, dtype=self._stored),
                load,
                **{"precision": precision, "bank": self._bank, **CAUSES[cause]},
            )
            for cause in causes
        }
        self.kernel = self._trainers[causes[0]].kernel
        self.idle_bytes = _allocated(device)
        self.runs: dict[str, Callable[[], tuple[Timing, int] | None]] = {PEFT: self._step_alone} | {
            f"{cause} K={count}": partial(self._step_packed, cause, count) for cause in causes for count in slots
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

    def _step_alone(self) -> tuple[Timing, int] | None:
        return self._measured(PEFT, 1, lambda steps: [self._peft.take_step() for _ in range(steps)])

    def _step_packed(self, cause: str, count: int) -> tuple[Timing, int] | None:
        trainer, name = self._trainers[cause], f"{cause} K={count}"
        try:
            for number in range(count):
                trainer.admit(trial(number, **self._hyper))
            return self._measured(name, count, partial(run_rounds, trainer))
        except torch.OutOfMemoryError:
            self.out_of_memory.append(name)
            return None
        finally:
            for number in range(count):
                trainer.evict(number)
            _free()

    def _measured(self, name: str, trials: int, take: Callable[[int], object]) -> tuple[Timing, int]:
        """Time of one step of one trial, and the peak of the device's memory above the two idle models."""
        wait = partial(_wait, self.device)
        if name not in self._repetitions:
            timed(lambda: take(WARM_UP), finish=wait)
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
        result["arms"] = _arms({name: [each for each in values if each] for name, values in found.items()}, flops)
    return result


def _arms(found: Mapping[str, Sequence[tuple[Timing, int]]], flops: float) -> dict[str, Any]:
    base = spread([timing.wall for timing, _ in found[PEFT]]).median
    arms: dict[str, Any] = {}
    for name, rounds in found.items():
        if not rounds:
            arms[name] = {"out_of_memory": True}
            continue
        wall = spread([timing.wall for timing, _ in rounds]).median
        arms[name] = {
            "wall_seconds": [timing.wall for timing, _ in rounds],
            "cpu_seconds": [timing.cpu for timing, _ in rounds],
            "peak_bytes_above_models": max(peak for _, peak in rounds),
            "median_wall_seconds": wall,
            "ratio_to_peft": base / wall,
            "tflops": flops / wall / 1e12,
        }
    return arms


def rows_of(result: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Table rows of one cell."""
    for name, arm in result["arms"].items():
        row: dict[str, object] = {"model": result["model"], "tokens": result["tokens_per_step"], "arm": name}
        if "out_of_memory" in arm:
            yield row | {"ms per step": "out of memory"}
            continue
        yield row | {
            "ms per step": spread([1e3 * value for value in arm["wall_seconds"]]).text(2),
            "x PEFT": f"{arm['ratio_to_peft']:.2f}",
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
def _exact_products() -> Iterator[None]:
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
    with _exact_products():
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
