"""Whole searches against each other: the same wall clock, the same machine, from a cold start.

    python -m benchmarks.head_to_head --data FOLDER --sets trec,banking77,sst2 --minutes 15 --seeds 0,1,2

`ours` is what a user gets from `automl init` and `automl search`; the others are Ray Tune with OptunaSearch and ASHA
(`ray_asha`), `Trainer.hyperparameter_search` with Optuna's MedianPruner (`trainer_median`), syne-tune's ASHA
(`syne_asha`, in an environment of its own: --syne-python), and random search with Ray Tune (`random`).

Rules. The clock starts with the first process of an arm, whose folder and caches are empty, and nothing that is found
after its time counts; `automl init` is in ours. All have the same rows, the same validation rows, length, batch size
and examples of a full trial. The others search the space that `automl init` writes, whatever their documentation
suggests: its ranges were chosen for small models like this one. What is ours alone are the configuration that `init`
has tried first, the policy, the packing, and the precision. Each has the same CPUs: two workers of one thread;
`trainer_median` one process of two threads. Of the others every evaluation counts, also one of a trial that was
stopped; of ours only complete trials, as `automl best` has it. What was chosen is trained anew from fresh seeds by one
plain PEFT loop for all arms, in fp32, and scored on test rows that no search has seen, where it is best on validation
rows. Time to 95 %: until the configuration that is best on validation rows is worth 95 % of the best test metric that
any arm has reached on the set. A search without any answer counts as 0.

Every finished search is stored at once under --record, and so is every training anew: the same command goes on where it
was stopped. Does not measure larger models, GPUs, several nodes, or searches of hours.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from automl.durable import replace_file
from automl.verify.statistics import paired
from benchmarks.head_to_head_arms import ARMS, OURS, SYNE, Terms, run_arm
from benchmarks.head_to_head_world import SETS, Anew, World, open_world, train_anew
from benchmarks.measure import ROOT, Disturbance, machine
from benchmarks.report import Report, names, numbers, parser, table
from benchmarks.squeeze_world import TextSet, write_quick_set
from benchmarks.text_sets import add_data_option, first_missing

RECORDED = ROOT / "benchmarks" / "recorded" / "head_to_head"
FRESH = (1001, 1002, 1003)
"""Seeds that what was chosen is trained anew with. The first one also scores what was the best before."""

SHARE = 0.95
SAID_EVERY = 15.0
"""Seconds between two lines of progress."""


class Key(NamedTuple):
    """One search."""

    set_name: str
    arm: str
    seed: int

    @property
    def file(self) -> str:
        """Where it is stored."""
        return f"{self.set_name}-{self.arm}-{self.seed}.json"


@dataclass(slots=True)
class Pace:
    """Says now and then what goes on."""

    what: str
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """Say so if it is time."""
        if time.monotonic() - self.said >= SAID_EVERY:
            self.said = time.monotonic()
            print(f"{self.what}: {self.said - self.began:,.0f} s", flush=True)


@dataclass(slots=True)
class RunFile:
    """One search as a JSON document, rewritten after everything that is added."""

    path: Path
    document: dict[str, Any]

    @property
    def incumbents(self) -> list[Mapping[str, Any]]:
        """What was the best so far, one after the other: when, its value on validation rows, its point of the space."""
        found: list[Mapping[str, Any]] = self.document["search"]["incumbents"]
        return found

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Trainings anew that are not there, by incumbent and seed: the last with all seeds, the others with one."""
        last = len(self.incumbents) - 1
        wanted = [(last, seed) for seed in FRESH] if last >= 0 else []
        wanted += [(number, FRESH[0]) for number in range(last)]
        return [(number, seed) for number, seed in wanted if f"{number}/{seed}" not in self.document["anew"]]

    def add(self, number: int, seed: int, found: Mapping[str, Any]) -> None:
        """Store a training anew."""
        self.document["anew"][f"{number}/{seed}"] = dict(found)
        self.write()

    def write(self) -> None:
        """Another file takes the place of the old one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, (json.dumps(self.document, indent=1) + "\n").encode())

    def tests(self, number: int) -> list[float]:
        """Test metrics of an incumbent."""
        found = (self.document["anew"].get(f"{number}/{seed}") for seed in FRESH)
        return [float(each["test"]) for each in found if each is not None]

    @property
    def result(self) -> float:
        """Mean test metric of what was chosen; 0 if nothing was."""
        return statistics.fmean(self.tests(len(self.incumbents) - 1)) if self.incumbents else 0.0

    def seconds_to(self, value: float) -> float:
        """Until the best so far is worth so much on test rows; infinite if it never is."""
        worth = (statistics.fmean(self.tests(number)) for number in range(len(self.incumbents)))
        return next((each["at"] for each, test in zip(self.incumbents, worth, strict=True) if test >= value), math.inf)


def read_run(path: Path) -> RunFile:
    """Raises OSError, and ValueError if it is no such file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["search"]["incumbents"], document["anew"], document["plan"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no search of benchmarks.head_to_head: {error!r}") from error
    return RunFile(path, document)


def search(key: Key, world: World, args: argparse.Namespace) -> RunFile:
    """One search, if it has not been stored, and trainings anew that are missing. Raises ValueError if it was made by
    another plan, RuntimeError if the arm fails.
    """
    plan = json.loads(json.dumps({**world.plan, "terms": {**terms_of(args)._asdict(), "python": ""}}))
    path = args.record / key.file
    if path.exists():
        run = read_run(path)
        changed = sorted(
            name for name in plan | run.document["plan"] if plan.get(name) != run.document["plan"].get(name)
        )
        if changed:
            raise ValueError(f"{path}: was made with other {', '.join(changed)}; name another --record")
    else:
        pace, disturbance, here = Pace(f"{key.set_name}, {key.arm}, seed {key.seed}"), Disturbance(), machine()
        folder = world.folder / f"{key.arm}-{key.seed}"
        found = run_arm(key.arm, world, folder, seed=key.seed, terms=terms_of(args), tick=pace.tick)
        run = RunFile(
            path,
            {
                "plan": plan,
                "machine": here,
                "disturbance": disturbance.read(),
                "search": found.as_json(),
                "anew": {},
            },
        )
        run.write()
        print(f"{pace.what}: {found.touched} trials, {len(found.incumbents)} times a new best", flush=True)
    _train_anew(key, run, world, args.workers)
    return run


def _train_anew(key: Key, run: RunFile, world: World, workers: int) -> None:
    missing = run.missing
    if not missing:
        return
    document = world.folder / "world.json"
    document.write_text(json.dumps(world.document()), encoding="utf-8")
    pace = Pace(f"{key.set_name}, {key.arm}, seed {key.seed}: {len(missing)} trainings anew")
    with get_context("spawn").Pool(workers) as pool:
        jobs = [
            (place, pool.apply_async(train_anew, (Anew(str(document), run.incumbents[place[0]]["drawn"], place[1]),)))
            for place in missing
        ]
        for (number, seed), job in jobs:
            while not job.ready():
                job.wait(0.2)
                pace.tick()
            run.add(number, seed, job.get())


def terms_of(args: argparse.Namespace) -> Terms:
    """What every search is given."""
    return Terms(
        seconds=60.0 * args.minutes,
        workers=args.workers,
        threads=args.threads,
        trials=args.trials,
        python=args.syne_python,
    )


def rows_of(set_name: str, runs: Mapping[Key, RunFile]) -> Iterator[dict[str, object]]:
    """Table rows of one set: each arm, and ours against it, paired by seed."""
    whole = {key: run for key, run in runs.items() if key.set_name == set_name and not run.missing}
    best = max((run.result for run in whole.values()), default=0.0)
    results = {arm: {key.seed: run for key, run in whole.items() if key.arm == arm} for arm in ARMS}
    for arm, by_seed in results.items():
        if not by_seed:
            continue
        common = sorted(by_seed.keys() & results[OURS].keys())
        gains = [results[OURS][seed].result - by_seed[seed].result for seed in common]
        times = [run.seconds_to(SHARE * best) for run in by_seed.values()]
        yield {
            "set": set_name,
            "arm": arm,
            "searches": len(by_seed),
            "test rows": f"{statistics.fmean(run.result for run in by_seed.values()):.4f}",
            "ours better by": "–" if arm == OURS else _interval(gains),
            "minutes to 95 %": _minutes(statistics.median_high(times)),
            "reached it": sum(map(math.isfinite, times)),
            "trials touched": f"{statistics.fmean(run.document['search']['touched'] for run in by_seed.values()):.0f}",
        }


def _interval(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return f"{gains[0]:+.4f}" if gains else "–"
    estimate = paired(gains, 0.95)
    return f"{estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if math.isfinite(seconds) else "never"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the searches that are missing and print the table."""
    options = parser("head_to_head", (__doc__ or "").split("\n\n")[0])
    add_data_option(options)
    options.add_argument("--sets", type=names, default=("trec", "banking77", "sst2"), help=f"of {', '.join(SETS)}")
    options.add_argument("--arms", type=names, default=ARMS, help=f"of {', '.join(ARMS)}")
    options.add_argument("--seeds", type=numbers, default=(0, 1, 2), metavar="N,N,…")
    options.add_argument("--minutes", type=float, default=15.0, help="of each search")
    options.add_argument("--epochs", type=int, default=0, help="of a full trial; 0 = as automl init writes")
    options.add_argument("--trials", type=int, default=0, help="end each search after so many; 0 = by time alone")
    options.add_argument("--workers", type=int, default=2, help="of the others; automl chooses for itself")
    options.add_argument("--threads", type=int, default=1, help="of each worker of the others")
    options.add_argument("--syne-python", default="", metavar="FILE", help="python of an environment with syne-tune")
    options.add_argument("--record", type=Path, default=RECORDED, metavar="FOLDER", help="one file for each search")
    options.add_argument("--work", type=Path, default=Path("benchmark-head-to-head"), metavar="FOLDER")
    options.add_argument("--only-table", action="store_true", help="print what has been recorded, train nothing")
    args = options.parse_args(arguments)
    args.work = args.work.resolve()
    sets = dict(SETS)
    if args.quick:
        sets["tiny"] = _quick(args)
    if mistake := _mistake(args, sets):
        print(mistake)
        return 2
    return _run(args, [sets[name] for name in args.sets])


def _quick(args: argparse.Namespace) -> TextSet:
    """Two trials of each arm on a tiny model: shows that everything runs, means nothing."""
    tiny = write_quick_set(args.work / "tiny")
    args.data, args.record, args.sets, args.seeds = args.work, args.work / "recorded", ("tiny",), (0,)
    args.trials, args.epochs = 2, 1
    return tiny


def _mistake(args: argparse.Namespace, sets: Mapping[str, TextSet]) -> str:
    """A line about what cannot be measured, empty if all can."""
    for option, given, known in (("--sets", args.sets, sets), ("--arms", args.arms, ARMS)):
        if unknown := [name for name in given if name not in known]:
            return f"{option}: there is no {unknown[0]!r}; there are {', '.join(known)}"
    if args.minutes <= 0:
        return f"--minutes: {args.minutes:g} is no time to search in"
    return "" if args.only_table else first_missing(args.data, args.sets)


def _run(args: argparse.Namespace, sets: Sequence[TextSet]) -> int:
    report = Report("head_to_head", args)
    report.print_machine()
    runs: dict[Key, RunFile] = {}
    if SYNE in args.arms and not args.syne_python and not args.only_table:
        print(f"{SYNE}: left out, since --syne-python names no environment with syne-tune")
    try:
        for text_set in sets:
            runs |= dict(_runs(text_set, args))
    except (OSError, ValueError, RuntimeError) as error:
        print(error)
        return 2
    rows = [row for text_set in sets for row in rows_of(text_set.name, runs)]
    report.add("results", rows)
    report.add("searches", {key.file: run.document for key, run in runs.items()})
    print(table(rows))
    return 0


def _opened(text_set: TextSet, args: argparse.Namespace) -> World:
    return open_world(text_set, args.data / text_set.name, args.work / text_set.name, epochs=args.epochs)


def _runs(text_set: TextSet, args: argparse.Namespace) -> Iterator[tuple[Key, RunFile]]:
    """All searches of a set that there are, made if they may be. Arms take turns, so that a change of the machine meets
    all of them.
    """
    world = None if args.only_table else _opened(text_set, args)
    for seed in args.seeds:
        for arm in args.arms:
            key = Key(text_set.name, arm, seed)
            is_there = (args.record / key.file).exists()
            if world is not None and (is_there or arm != SYNE or args.syne_python):
                yield key, search(key, world, args)
            elif is_there:
                yield key, read_run(args.record / key.file)


if __name__ == "__main__":
    sys.exit(main())
