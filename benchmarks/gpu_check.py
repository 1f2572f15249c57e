"""One command that says of a machine with a GPU whether packed training is exact there, fits, and what it is worth.

Exactness against PEFT, memory against the plan, three factors (packing at a tiny batch, packing at a batch that keeps
the device busy, pruning), ranks mixed, a whole search, and one that is killed and continued. Every part runs in a
process of its own with a time limit of its own, so that one that fails, hangs or takes its process down stops no
other; all in at most eight minutes, without a network, Ray, or the Hub. Memory that is too short is named, and not
timed as something else. The factors are three answers to three questions: none is multiplied by another.

    python -m benchmarks.gpu_check [--json FILE] [--quick] [--only NAME,…]
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import Report, names, parser, table

MINUTES = 8.0
"""That the whole check may take."""


class Part(NamedTuple):
    """A function of a module that is told the world and these options. seconds: that it may take.

    is_timed: it measures time, so nothing else may run meanwhile.
    """

    name: str
    function: str
    seconds: float
    options: Mapping[str, Any] = {}
    is_timed: bool = False
    module: str = "benchmarks.gpu_parts"


PARTS = (
    Part("device", "device", 30, is_timed=True),
    Part("exact fp32", "exact", 100, {"precision": "fp32"}),
    Part("exact bf16", "exact", 100, {"precision": "bf16"}),
    Part("exact nf4", "exact", 100, {"precision": "fp32", "in_4_bits": True}),
    Part("memory", "memory", 100),
    Part("search", "search", 120),
    Part("search killed", "resumed", 120),
    Part("0.1b", "factor", 40, {"shape": "0.1b", "tiny": (1, 8, 32, 64), "saturating": (1, 8)}, True),
    Part("0.5b", "factor", 50, {"shape": "0.5b", "tiny": (1, 8, 32), "saturating": (1, 8)}, True),
    Part("1b", "factor", 50, {"shape": "1b", "tiny": (1, 8, 32), "saturating": (1, 8)}, True),
    Part("8b nf4", "factor", 80, {"shape": "8b", "tiny": (1, 8), "saturating": (8,), "in_4_bits": True}, True),
    Part("8b", "factor", 70, {"shape": "8b", "tiny": (1, 8), "saturating": (4,)}, True),
    Part("ranks mixed", "ranks", 40, is_timed=True),
)
"""In the order in which they run: what is exact first, then what is fast, the cheapest first."""

QUICK = ("device", "exact fp32", "exact bf16", "exact nf4", "memory", "search", "search killed", "0.1b", "ranks mixed")
"""On the CPU every function runs once, on tiny models."""

QUICK_SECONDS = 600.0
"""That a part may take on a CPU which may have much else to do."""

REACH = {
    ("0.5b", "tiny_batch", 32): 8.0,
    ("1b", "tiny_batch", 32): 8.0,
    ("0.5b", "saturating_batch", 8): 1.3,
    ("1b", "saturating_batch", 8): 1.3,
    ("8b nf4", "tiny_batch", 8): 3.0,
}
"""What one H200 or H100 should come to: part, batch, trials in the pack -> times PEFT."""

SO_FAR = "so-far.json"
"""File in a part's folder with what it has found, should it not come to its end."""

_PRELOADED = ["torch", "transformers", "peft", "benchmarks.gpu_parts"]


class Checked(NamedTuple):
    """How a part ended. status: ok, failed, out of memory, missing (a package), timed out, died, or not run.

    cpu_seconds: of its process, None if that did not end by itself.
    """

    part: Part
    status: str
    seconds: float
    why: str = ""
    result: Mapping[str, Any] = {}
    cpu_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        said: dict[str, Any] = {"status": self.status, "seconds": round(self.seconds, 1)}
        said |= {"cpu_seconds": self.cpu_seconds, "limit_seconds": self.part.seconds}
        return {**said, **({"why": self.why} if self.why else {}), "result": dict(self.result)}


def check(parts: Sequence[Part], *, quick: bool, until: float) -> Iterator[Checked]:
    """Run the parts, those that measure no time side by side on a GPU; each is reported when it has ended.

    until: when all must have ended, by the monotonic clock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder, ThreadPoolExecutor(len(parts)) as threads:

        def run(numbered: tuple[int, Part]) -> Checked:
            number, part = numbered
            own = Path(folder) / str(number)
            own.mkdir()
            return _checked(context, part, own, quick=quick, until=until)

        for together in _in_turn(list(enumerate(parts)), one_by_one=quick):
            yield from threads.map(run, together)


def _in_turn(parts: Sequence[tuple[int, Part]], *, one_by_one: bool) -> Iterator[list[tuple[int, Part]]]:
    """Neighbours that measure no time together, the others alone."""
    waiting: list[tuple[int, Part]] = []
    for number, part in parts:
        if part.is_timed or one_by_one:
            yield from ([waiting] if waiting else [])
            waiting = []
            yield [(number, part)]
        else:
            waiting.append((number, part))
    yield from ([waiting] if waiting else [])


def _checked(context: ForkServerContext, part: Part, folder: Path, *, quick: bool, until: float) -> Checked:
    began = time.monotonic()
    limit = min(part.seconds, until - began)
    if limit <= 0:
        return Checked(part, "not run", 0.0, "the time of the whole check was used up")
    process = context.Process(target=_work, args=(part, folder, quick))
    process.start()
    process.join(limit)
    seconds = time.monotonic() - began
    if process.is_alive():
        _end(process)
        return Checked(part, "timed out", seconds, f"it did not end in {limit:.0f} s", _read(folder / SO_FAR))
    if not (answer := _read(folder / "answer.json")):
        return Checked(part, "died", seconds, _exit_of(process.exitcode), _read(folder / SO_FAR))
    said, result = answer.get("why", ""), answer.get("result", {})
    return Checked(part, answer["status"], seconds, said, result, answer["cpu_seconds"])


def _read(file: Path) -> dict[str, Any]:
    """What a part has written, empty if it has not."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _end(process: Any) -> None:
    """End the process and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _exit_of(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"its process ended with code {code}"


def _work(part: Part, folder: Path, quick: bool) -> None:
    """In a process of its own: run the part and write how it ended."""
    os.setsid()
    answer = {**_answer(part, folder, quick), "cpu_seconds": round(time.process_time(), 1)}
    draft = folder / "draft.json"
    draft.write_text(json.dumps(answer), encoding="utf-8")
    draft.rename(folder / "answer.json")


def _answer(part: Part, folder: Path, quick: bool) -> dict[str, Any]:
    from automl.errors import MissingExtraError, is_out_of_memory

    try:
        if quick:
            importlib.import_module("torch").set_num_threads(1)
        world = importlib.import_module("benchmarks.gpu_parts").World(quick=quick, folder=folder)
        found = getattr(importlib.import_module(part.module), part.function)(world, **part.options)
    except (MissingExtraError, ModuleNotFoundError) as error:
        return {"status": "missing", "why": str(error)}
    except Exception as error:  # noqa: BLE001 - the edge: whatever a part raises is what it says
        status = "out of memory" if is_out_of_memory(error) or type(error).__name__ == "OutOfMemory" else "failed"
        return {"status": status, "why": f"{type(error).__name__}: {error}"[:2000]}
    return {"status": "failed" if found["holds"] is False else "ok", "result": found}


def factors(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The three factors out of the parts' results: two of packing by model and trials in the pack, one of pruning."""
    packing = {
        batch: {
            name: {arm: told.get("ratio_to_peft") for arm, told in result[batch]["arms"].items() if "K=" in arm}
            for name, result in found.items()
            if batch in result
        }
        for batch in ("tiny_batch", "saturating_batch")
    }
    return {**packing, "pruning": found.get("search", {}).get("pruning")}


def reached(found: Mapping[str, Any]) -> list[dict[str, object]]:
    """Table rows: what was to be reached, and what was."""
    rows = []
    for (part, batch, slots), wanted in REACH.items():
        ratio = found[batch].get(part, {}).get(f"packed K={slots}")
        what = f"{part}, {batch.replace('_', ' ')}, K = {slots}"
        rows.append({"x PEFT": what, "reach": wanted, "measured": "-" if ratio is None else f"{ratio:.2f}"})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a part did not end well, 2 without a GPU."""
    options = parser("gpu_check", (__doc__ or "").split("\n\n")[0])
    options.add_argument("--only", type=names, default=(), metavar="NAME,…", help="these parts")
    options.add_argument("--minutes", type=float, default=MINUTES, help="that the whole check may take")
    args = options.parse_args(arguments)
    if unknown := set(args.only) - {part.name for part in PARTS}:
        options.error(f"--only: {min(unknown)!r} is not known; known are {', '.join(part.name for part in PARTS)}")
    if not args.quick and not _has_gpu():
        print("gpu_check needs a CUDA device and torch sees none; --quick runs its parts on the CPU with tiny models")
        return 2
    return _run(args)


def _has_gpu() -> bool:
    """Asked of another process: one that has asked CUDA cannot be forked for parts that use it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return bool(pool.apply(_sees_gpu))


def _sees_gpu() -> bool:
    return bool(importlib.import_module("torch").cuda.is_available())


def _run(args: argparse.Namespace) -> int:
    report = Report("gpu_check", args)
    report.print_machine()
    until = time.monotonic() + (QUICK_SECONDS * len(PARTS) if args.quick else 60 * args.minutes)
    parts = [part for part in PARTS if part.name in (args.only or (QUICK if args.quick else (part.name,)))]
    if args.quick:
        parts = [part._replace(seconds=QUICK_SECONDS) for part in parts]
    results: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, object]] = []
    for checked in check(parts, quick=args.quick, until=until):
        results[checked.part.name] = checked.as_json()
        report.add("parts", results)
        rows.append({"part": checked.part.name, "status": checked.status, "s": f"{checked.seconds:.0f}"})
        print(f"{checked.part.name}: {checked.status} ({checked.seconds:.0f} s) {checked.why}".rstrip(), flush=True)
    found = factors({name: each["result"] for name, each in results.items()})
    report.add("factors", found)
    print(table(rows))
    if args.quick:
        print("tiny models: this shows that the check runs, its figures mean nothing")
    else:
        print(table(reached(found)))
        print(f"pruning: {found['pruning']} (steps of the search without pruning over those that it took)")
    return 0 if all(each["status"] == "ok" for each in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
