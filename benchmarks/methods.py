"""The whole way of every method on the model and the data of a space file: the table of docs/methods.md.

    python -m benchmarks.methods search_spaces/bbc-topics.yaml
    python -m benchmarks.methods search_spaces/smollm2-instruct.yaml --plain --quantization nf4

A few steps of each method and, unless --plain, of each value that it tries of its settings: trained, killed by SIGKILL
in the middle, resumed in another process, exported, loaded in a fresh one by the lines that a user is told, and merged
where that can be. Says whether it works, and nothing of how well it learns. The exit status is 1 if anything does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from automl.errors import AutomlError
from automl.methods.registry import METHODS
from automl.provenance import processor
from automl.results.folders import cache_folder
from automl.setup.setup import for_one_trial, set_up
from automl.space.load import load_space
from automl.space.spec import Quantization
from automl.testing.whole_way import SAME, SAME_HELD, SAME_MERGED, STEPS, Walk, cases, walk
from automl.training.runtime import HostSettings
from benchmarks.report import names

HEAD = "| method | trained | loss | resumes | reloads | merged |\n|---|---|---|---|---|---|"


def settings_of(space: Path, quantization: str | None, rows: int, output: Path) -> HostSettings:
    """What a worker is told by this space file, for one trial at a time in one thread and fp32; rows: of validation."""
    spec = load_space(space)
    held = Quantization(kind=quantization) if quantization else spec.model.quantization  # type: ignore[arg-type]
    model, run = replace(spec.model, quantization=held), replace(spec.run, precision="fp32")
    spec = replace(spec, model=model, run=run, task=replace(spec.task, evaluate_rows=rows))
    setup = set_up(for_one_trial(spec), cache_folder(), is_thorough=False)
    return replace(setup.worker_settings(), output=str(output), packed=False, capacity=1, threads=1, importance=False)


def lines(found: Sequence[Walk], same: float) -> Iterator[str]:
    """The table."""
    yield HEAD
    for each in found:
        if each.refused or each.fault:
            yield f"| {each.case} | – | {_why_not(each)} | – | – | – |"
            continue
        loaded = "yes" if each.off <= same else f"NO, {each.off:.1e}"
        merged = "–" if each.merged_off is None else f"{each.merged_off:.0e}"
        before, after = each.losses
        yield (
            f"| {each.case} | {each.parameters:,} | {before:.4f} → {after:.4f} | {'yes' if each.is_same else 'NO'}"
            f" | {loaded} | {merged} |"
        )


def _why_not(found: Walk) -> str:
    return f"refused: {found.refused}" if found.refused else f"FAILED: {found.fault}"


def is_well(found: Walk, same: float, same_merged: float) -> bool:
    """Whether nothing is wrong with it."""
    return bool(found.refused) or (
        not found.fault and found.is_same and found.off <= same and (found.merged_off or 0.0) <= same_merged
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk and print."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("space", type=Path)
    options.add_argument("--quantization", choices=("int8", "nf4", "fp4"))
    options.add_argument("--rows", type=int, default=16, help="of validation, on which a trial is measured")
    options.add_argument("--plain", action="store_true", help="each method as it is, without its settings")
    options.add_argument("--only", type=names, default=tuple(METHODS), metavar="METHODS", help="separated by commas")
    options.add_argument("--no-merge", action="store_true")
    args = options.parse_args(arguments)
    same, same_merged = (SAME_HELD, 1.0) if args.quantization else (SAME, SAME_MERGED)
    with tempfile.TemporaryDirectory(prefix="automl-methods-") as work:
        try:
            settings = settings_of(args.space, args.quantization, args.rows, Path(work))
            every = [case for case in cases() if case.method in args.only]
            chosen = [case for case in every if not (args.plain and (case.own or case.general))]
            found = walk(settings, chosen, merge=not args.no_merge)
        except AutomlError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"{STEPS} steps, killed in step {STEPS // 2 + 2}, on {processor()}")
    print("\n".join(lines(found, same)))
    return 0 if all(is_well(each, same, same_merged) for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
