"""Records LoRA trainings as tables, in which searches are replayed without training: configurations x evaluations.

    python -m benchmarks.lora_curves --data FOLDER --sets trec,banking77

Of every set, 96 configurations of a scrambled Sobol sequence over rank, alpha, dropout, target set, learning rate and
batch size are trained on the same examples and measured on validation and on test rows; the first 24 once more with
another seed. A set is one file under --record, in which a training is stored as soon as it is finished: the same
command goes on where it was stopped, and sets may be recorded by several processes at once. Searches are replayed by
`python -m benchmarks.replay --tables lora`. Does not measure larger models, or methods other than LoRA.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from automl.storage.sqlite_file import try_flock
from benchmarks.curve_file import WHOLE, Curve, CurveFile, Key, read_curves
from benchmarks.lora_curves_world import SETS, CurveSet, open_set, train
from benchmarks.measure import ROOT, machine
from benchmarks.report import Report, names, parser, table
from benchmarks.squeeze_world import write_quick_set
from benchmarks.text_sets import add_data_option, first_missing

RECORDED = ROOT / "benchmarks" / "recorded" / "lora_curves"
REPEATED = 24
SAID_EVERY = 15.0
"""Seconds between two lines of progress."""


@dataclass(slots=True)
class Pace:
    """How far a recording is, said now and then. examples: that are left to train."""

    name: str
    trainings: int
    examples: int
    done: int = 0
    whole: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """Say so if it is time."""
        if time.monotonic() - self.said >= SAID_EVERY:
            self.said = time.monotonic()
            print(self.line(), flush=True)

    def measured(self, examples: int) -> None:
        """Count examples that were trained on."""
        self.done += examples

    def line(self) -> str:
        """Trainings, the share of all examples, and what is left at the pace so far."""
        used = time.monotonic() - self.began
        left = f"about {used * (self.examples - self.done) / self.done / 60:,.0f} min left" if self.done else "begun"
        share = self.done / self.examples
        return f"{self.name}: {self.whole} of {self.trainings} trained, {share:.0%} of the examples; {left}"


def keys_of(args: argparse.Namespace) -> list[Key]:
    """The trainings that were asked for: each configuration first, then the second seeds."""
    wanted = range(*args.configurations)
    return [Key(number, 0) for number in wanted] + [Key(number, 1) for number in wanted if number < args.repeated]


def record(curve_set: CurveSet, args: argparse.Namespace) -> CurveFile:
    """Train what is missing of one set."""
    args.record.mkdir(parents=True, exist_ok=True)
    with _alone(args.record, curve_set.name):
        lab = open_set(curve_set, args.data, args.work / curve_set.name, precision=args.precision)
        plan = curve_set.plan(lab.work / "data", model=lab.backbone.fingerprint, precision=lab.runtime.precision)
        file = _opened(args.record / f"{curve_set.name}.npz", curve_set, plan)
        missing = [key for key in keys_of(args) if key not in file.curves]
        if missing:
            file.runs.append(machine())
            pace = Pace(curve_set.name, len(missing), len(missing) * curve_set.examples)
            waiting = (key for key in missing if time.monotonic() < args.until)
            for key, curve in train(curve_set, lab, waiting, tick=pace.tick, measured=pace.measured):
                pace.whole += 1
                file.add(key, curve)
    return file


def _opened(path: Path, curve_set: CurveSet, plan: dict[str, object]) -> CurveFile:
    """The file as it is, or a new one. Raises ValueError if it was recorded otherwise."""
    if not path.exists():
        return CurveFile(path=path, plan=plan, metrics=curve_set.metrics)
    file = read_curves(path)
    changed = [name for name in plan.keys() | file.plan.keys() if plan.get(name) != file.plan.get(name)]
    if changed:
        raise ValueError(f"{path}: was recorded with other {', '.join(sorted(changed))}; name another --record")
    for key, curve in file.curves.items():
        if not np.allclose([*curve.configuration.values()], [*curve_set.configuration(key).values()]):
            raise ValueError(f"{path}: configuration {key.configuration} is another one here; name another --record")
    return file


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Inside the block no other process records this set there. Raises ValueError if one does."""
    descriptor = os.open(folder / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not try_flock(descriptor):
            raise ValueError(f"{folder}: another process is recording {name}")
        yield
    finally:
        os.close(descriptor)


def facts(file: CurveFile) -> dict[str, object]:
    """One row of the printed table: what there is, what the best is worth, and what another seed changes."""
    first = {key.configuration: curve for key, curve in file.curves.items() if key.repeat == 0}
    again = {key.configuration: curve for key, curve in file.curves.items() if key.repeat == 1}
    if not first:
        return {"set": file.path.stem, "configurations": 0}
    sign = -1.0 if file.metrics[0] == "loss" else 1.0
    last = {number: sign * curve.validation[-1, 0] for number, curve in first.items()}
    best = max(last, key=lambda number: np.nan_to_num(last[number], nan=-np.inf))
    gaps = [
        curve.validation[-1, 0] - first[number].validation[-1, 0] for number, curve in again.items() if number in first
    ]
    known = [gap for gap in gaps if np.isfinite(gap)]
    return {
        "set": file.path.stem,
        "configurations": len(first),
        "with two seeds": len(gaps),
        "metric": file.metrics[0],
        "median": f"{sign * np.nanmedian(list(last.values())):.3f}",
        "best": f"{sign * last[best]:.3f}",
        "on test rows": f"{first[best].test[-1, 0]:.3f}",
        "of": best,
        "sd of a seed": f"{np.sqrt(np.mean(np.square(known)) / 2):.3f}" if known else "–",
        "diverged": sum(bool(np.isnan(curve.validation[-1, 0])) for curve in first.values()),
        "rate tells": f"{explained(first.values(), 0.0):.2f}",
        "at alpha": f"{explained(first.values(), 0.5):.2f}",
        "CPU s of a training": f"{np.mean([curve.seconds[-1] for curve in file.curves.values()]):.1f}",
    }


def explained(curves: Iterable[Curve], power: float) -> float:
    """Share of the variance of the final losses' ranks that a cubic polynomial in log(rate x alpha^power) explains."""
    kept = list(curves)
    losses = np.nan_to_num([curve.validation[-1, -1] for curve in kept], nan=np.inf)
    ranks = np.argsort(np.argsort(losses)).astype(np.float64)
    rate, alpha = (np.log([curve.configuration[name] for curve in kept]) for name in ("learning_rate", "alpha"))
    place = rate + power * alpha
    fitted = np.polynomial.Polynomial.fit(place, ranks, min(3, len(kept) - 1))(place)
    return float(1.0 - np.var(ranks - fitted) / np.var(ranks)) if len(kept) > 1 else float("nan")


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what is missing and print what there is."""
    options = parser("lora_curves", (__doc__ or "").split("\n\n")[0])
    add_data_option(options)
    options.add_argument("--sets", type=names, default=tuple(SETS))
    options.add_argument(
        "--configurations", type=part, default=(0, WHOLE), metavar="FIRST:LAST", help="the last left out"
    )
    options.add_argument("--repeated", type=int, default=REPEATED, help="the first so many are trained with two seeds")
    options.add_argument("--seconds", type=float, default=float("inf"), help="begin no training after so many seconds")
    options.add_argument("--precision", default="bf16h", help="what a search chooses on a CPU that has bfloat16")
    options.add_argument("--record", type=Path, default=RECORDED, metavar="FOLDER", help="one file for each set")
    options.add_argument("--work", type=Path, default=Path("benchmark-lora-curves"), metavar="FOLDER")
    options.add_argument("--only-table", action="store_true", help="print what has been recorded, train nothing")
    args = options.parse_args(arguments)
    args.work, args.until = args.work.resolve(), time.monotonic() + args.seconds
    sets = dict(SETS)
    if args.quick:
        args.data, args.record, args.precision, args.sets = args.work, args.work / "recorded", "fp32", ("tiny",)
        sets["tiny"] = CurveSet(
            text_set=replace(write_quick_set(args.work / "tiny"), max_length=12),
            examples=48,
            evaluations=3,
            batches=(4, 8, 16),
            slots=3,
        )
    if mistake := _mistake(args, sets):
        print(mistake)
        return 2
    return _run(args, [sets[name] for name in args.sets])


def _mistake(args: argparse.Namespace, sets: dict[str, CurveSet]) -> str:
    """A line about what cannot be recorded, empty if all can."""
    if unknown := [name for name in args.sets if name not in sets]:
        return f"--sets: there is no {unknown[0]!r}; there are {', '.join(sets)}"
    return "" if args.only_table else first_missing(args.data, args.sets)


def _run(args: argparse.Namespace, sets: Sequence[CurveSet]) -> int:
    report = Report("lora_curves", args)
    report.print_machine()
    rows = []
    for curve_set in sets:
        path = args.record / f"{curve_set.name}.npz"
        try:
            if not args.only_table and time.monotonic() < args.until:
                record(curve_set, args)
            if path.exists():
                rows.append(facts(read_curves(path)))
        except (OSError, ValueError, KeyError) as error:
            print(error)
            return 2
    report.add("sets", rows)
    print(table(rows))
    return 0


def part(text: str) -> tuple[int, int]:
    """FIRST:LAST, as an option's type."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r}: FIRST:LAST is wanted, as 0:{WHOLE}")
    return int(first), int(last)


if __name__ == "__main__":
    sys.exit(main())
