"""Memory that a squeeze takes above the backbone: resident memory, at its peak, of one process that does nothing else.

    python -m benchmarks.squeeze_memory --shape smollm2-135m --rank 64

An untrained adapter with random weights is cut on a model with random weights, once by its energy alone and once with
what 256 rows show of the modules' inputs. Printed is what a squeeze adds, beside the sizes of the adapter and of the
largest module's weights in float32, beside what PEFT takes to load the adapter, and, for the rows, beside what the same
forward passes take without a squeeze.
Does not measure time or what a cut is worth.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no annotations
import torch

from automl.importance.heldout import in_batches
from automl.packed.memory import give_back_memory
from automl.packed.trainer import PackedTrainer
from automl.training.cut import TurnedAdapter
from automl.training.export import with_adapter
from automl.training.runtime import Runtime
from benchmarks.measure import MemorySampler
from benchmarks.report import Report, parser, table
from benchmarks.shapes import SHAPES, build, trial, workload
from benchmarks.squeeze_world import SQUEEZE_ROWS


def write_adapter(shape: str, rank: int, folder: Path) -> tuple[int, int]:
    """Write an adapter of that rank on all linear layers, with random weights.

    Returns its parameters, and the weights of the largest layer it adapts.
    """
    with closing(PackedTrainer(build(shape), workload(shape, tokens=8, rows=1, evaluation_rows=1))) as trainer:
        trainer.admit(trial(0, rank=rank, alpha=float(rank)))
        parts = trainer.members[0].adapter.low_rank.values()
        for part in parts:
            torch.nn.init.normal_(part.b, std=0.01)
        trainer.export(0, folder, base="")
        largest = max(layer.in_features * layer.out_features for layer in trainer.layers("all-linear"))
        return sum(part.a.numel() + part.b.numel() for part in parts), largest


def runtime_of(shape: str, tokens: int) -> Runtime:
    """The model with random weights and rows of so many tokens."""
    load = workload(shape, tokens=tokens)
    return Runtime(
        model=build(shape),
        tokenizer=load.tokenizer,
        task=load.task,
        train_rows=load.train_rows,
        evaluation_rows=load.evaluation_rows,
        device=torch.device("cpu"),
    )


def growth(work: Callable[[], Any]) -> int:
    """Bytes by which resident memory rises at most while this works."""
    give_back_memory()
    before = psutil.Process().memory_info().rss
    with MemorySampler(os.getpid(), interval_seconds=0.002) as sampler:
        kept = work()
    del kept
    return max(0, sampler.peak_bytes - int(before))


def passes(runtime: Runtime) -> None:
    """The forward passes alone that a squeeze looks at the rows with."""
    with torch.no_grad():
        for chunk in in_batches(runtime.train_rows[:SQUEEZE_ROWS]):
            runtime.task.loss(runtime.model, runtime.batch(chunk))


def measure(args: argparse.Namespace) -> dict[str, int]:
    """Bytes of every part, by what it is."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        parameters, largest = write_adapter(args.shape, args.rank, Path(folder))
        runtime, spare, loaded = (runtime_of(args.shape, args.tokens) for _ in range(3))
        rows = runtime.train_rows[:SQUEEZE_ROWS]
        return {
            "backbone": 4 * sum(tensor.numel() for tensor in runtime.model.parameters()),
            "adapter": 4 * parameters,
            "largest module": 4 * largest,
            "adapter loaded by PEFT": growth(lambda: with_adapter(loaded.model, Path(folder))),
            "forward passes alone": growth(lambda: passes(runtime)),
            "squeeze, no rows": growth(lambda: TurnedAdapter(Path(folder), spare)),
            "squeeze, rows": growth(lambda: TurnedAdapter(Path(folder), runtime, rows)),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parser("squeeze_memory", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    options.add_argument("--rank", type=int, default=64)
    options.add_argument("--tokens", type=int, default=32, help="of a row (32)")
    args = options.parse_args(arguments)
    if args.quick:
        args.shape, args.rank, args.tokens = "tiny-llama", 4, 8
    torch.set_num_threads(1)
    report = Report("squeeze_memory", args)
    report.print_machine()
    found = measure(args)
    report.add("bytes", found)
    print(table([{"what": name, "MiB": f"{size / 2**20:,.1f}"} for name, size in found.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
