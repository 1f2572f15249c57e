"""What cutting trained adapters is worth: the table of docs/squeeze.md, over public sets, resumable.

    python -m benchmarks.squeeze_table --data FOLDER --sets trec,cola --parts cuts,small,gate,ranks

For every set: rank 16 on all linear layers of MiniLM at a learning rate chosen on validation rows; its global and even
cuts (`cuts`); cuts trained on for a few steps, and training at the small rank with as many steps in all (`small`);
other ranks at rates of their own (`gate`); training with squeezed and with random ranks (`ranks`). Every finished
training is stored at once under --record: the same command goes on where it was stopped, and `--only-table` prints
what there is. Scores are on test rows that nothing was chosen by. Does not measure larger models, generation, or other
PEFT methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.report import Report, names, numbers, parser
from benchmarks.squeeze_arms import PARTS, Arms, Record
from benchmarks.squeeze_numbers import print_table
from benchmarks.squeeze_world import SETS, TextSet, open_lab, write_quick_set
from benchmarks.text_sets import add_data_option, first_missing

RECORDED = ROOT / "benchmarks" / "recorded" / "squeeze"


def measure(text_set: TextSet, part: str, args: argparse.Namespace) -> None:
    """One part of one set: whatever of it has no result yet."""
    settings = {"precision": args.precision, "threads": args.threads, "seeds": list(args.seeds)}
    record = Record(args.record / f"{text_set.name}.json", text_set, settings)
    place, work = args.data / text_set.name, args.work / text_set.name
    lab = open_lab(text_set, place, work, precision=args.precision, threads=args.threads)
    record.begin()
    PARTS[part](Arms(text_set, record, lab, args.seeds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table."""
    options = parser("squeeze_table", (__doc__ or "").split("\n\n")[0])
    add_data_option(options)
    options.add_argument("--sets", type=names, default=tuple(SETS))
    options.add_argument("--parts", type=names, default=tuple(PARTS))
    options.add_argument("--seeds", type=numbers, default=(1, 2, 3, 4, 5))
    options.add_argument("--precision", default="bf16h", help="what a search chooses on a CPU that has bfloat16")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--record", type=Path, default=RECORDED, metavar="FOLDER", help="results, one file for a set")
    options.add_argument("--work", type=Path, default=Path("benchmark-squeeze"), metavar="FOLDER", help="adapters")
    options.add_argument("--only-table", action="store_true", help="print what has been measured, train nothing")
    args = options.parse_args(arguments)
    args.work = args.work.resolve()
    text_sets = dict(SETS)
    if args.quick:
        args.data, args.record, args.precision, args.sets = args.work, args.work / "recorded", "fp32", ("tiny",)
        text_sets["tiny"] = write_quick_set(args.work / "tiny")
    report = Report("squeeze_table", args)
    if not args.only_table:
        if missing := first_missing(args.data, args.sets):
            print(missing)
            return 2
        report.print_machine()
        for part in args.parts:
            for name in args.sets:
                measure(text_sets[name], part, args)
    report.add("sets", print_table(args.record, args.sets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
