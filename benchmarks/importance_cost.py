"""What measuring importances costs: CPU time of a training step with and without it, packed, interleaved.

The share is of training alone; evaluations, which take longer than the summary at a measurement, are not counted. Two
figures: the difference of whole steps, which is noisy, and the time of the samples themselves over that of the steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from automl.importance.sensitivity import EVERY, Sensitivity
from automl.models.quantised import weight_norms
from automl.packed import PackedTrainer
from automl.packed.member import factors
from benchmarks.measure import Timing, interleaved, spread, timed
from benchmarks.packed_step import Setting
from benchmarks.plain_peft import run_rounds
from benchmarks.report import Report, parser, table
from benchmarks.shapes import build, trial, workload

SETTINGS = (Setting("minilm", 8, 64), Setting("minilm", 16, 12))
QUICK = (Setting("tiny-bert", 4, 8),)
STEPS = 200
"""Optimizer steps of a trial: in longer ones samples are rarer, and cost less."""

LIMIT = 0.01
"""Share of the training time that measuring may take."""


class Arms:
    """A set of trials with and without, and the samples alone; each call does as much as EVERY steps of all trials."""

    def __init__(self, setting: Setting, *, slots: int, rank: int, precision: str) -> None:
        load = workload(setting.shape, tokens=setting.length)
        self.slots = slots
        hyper: dict[str, Any] = {"batch_size": setting.batch, "rank": rank, "schedule": "constant", "warmup": 0.0}
        self._trainers = {}
        for name, importance in (("without", False), ("with", True)):
            trainer = PackedTrainer(build(setting.shape), load, precision=precision, importance=importance)
            for number in range(slots):
                trainer.admit(trial(number, steps=STEPS, **hyper))
            run_rounds(trainer, EVERY)
            self._trainers[name] = trainer
        trainer = self._trainers["without"]
        layers = trainer.layers("all-linear")
        self._sensitivity = Sensitivity(layers, rank, weight_norms(trainer.model, layers))

    def steps(self, name: str) -> Timing:
        """One step of one trial."""
        return timed(lambda: run_rounds(self._trainers[name], EVERY)).per(EVERY * self.slots)

    def samples(self) -> Timing:
        """What a step of one trial bears of one sample."""
        members = list(self._trainers["without"].members.values())

        def take() -> None:
            for member in members:
                self._sensitivity.add(factors(member.adapter), 1)

        return timed(take).per(EVERY * self.slots)


def measure(setting: Setting, *, slots: int, rank: int, precision: str, rounds: int) -> dict[str, Any]:
    """CPU seconds of a step without and with, and of a sample's share in it; all rounds."""
    arms = Arms(setting, slots=slots, rank=rank, precision=precision)
    found = interleaved(
        {"without": partial(arms.steps, "without"), "with": partial(arms.steps, "with"), "sample": arms.samples}, rounds
    )
    cpu = {name: [timing.cpu for timing in timings] for name, timings in found.items()}
    medians = {name: spread(values).median for name, values in cpu.items()}
    return {
        "setting": setting.name,
        "precision": precision,
        "slots": slots,
        "rank": rank,
        "cpu_seconds": cpu,
        "share": medians["sample"] / medians["without"],
        "difference": medians["with"] / medians["without"] - 1.0,
    }


def row(result: dict[str, Any]) -> dict[str, object]:
    """One line of the table."""
    cpu = result["cpu_seconds"]
    return {
        "setting": result["setting"],
        "precision": result["precision"],
        "CPU ms per step": spread([1e3 * value for value in cpu["without"]]).text(),
        "of a sample": spread([1e3 * value for value in cpu["sample"]]).text(3),
        "share": f"{result['share']:.2%}",
        "difference of steps": f"{result['difference']:+.2%}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a share is above the limit."""
    made = parser("importance_cost", __doc__)
    made.add_argument("--slots", type=int, default=4, help="trials in the pack (4)")
    made.add_argument("--rank", type=int, default=8)
    made.add_argument("--rounds", type=int, default=8)
    made.add_argument("--precision", default="bf16h", help="bf16h or fp32; the faster one makes the share larger")
    made.add_argument("--threads", type=int, default=1)
    options: argparse.Namespace = made.parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report("importance_cost", options)
    report.print_machine()
    results = [
        measure(
            setting,
            slots=options.slots,
            rank=options.rank,
            precision=options.precision,
            rounds=2 if options.quick else options.rounds,
        )
        for setting in (QUICK if options.quick else SETTINGS)
    ]
    for result in results:
        report.append("results", result)
    print(table([row(result) for result in results]))
    return 0 if options.quick or all(result["share"] <= LIMIT for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
