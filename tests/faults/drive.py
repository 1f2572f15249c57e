"""One driver as a process of its own, to be killed: `python -m tests.faults.drive FOLDER --executor ray …`.

Opens the study in FOLDER, runs it with formula hosts, and exits as the command line does: 0 done, 3 storage, 4 stopped
and resumable. Prints "driving" once the study is open and the executor starts.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.errors import AutomlError, InterruptedSearch
from automl.execution import make_executor
from automl.execution.dispatch import Dispatcher
from automl.space.spec import SearchSettings
from automl.storage.retry import Retry
from automl.testing.formula import FormulaHost
from tests.faults.search import open_search

CAPACITY = 2

SETTINGS = SearchSettings(
    sampler="random",
    pruner="peer",
    pruner_options={"first_rung": 1},
    trials=20,
    steps=20,
    evaluate_every=2,
    seed=11,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--executor", default="inline")
    parser.add_argument("--step-seconds", type=float, default=0.01)
    parser.add_argument("--address", help="of a Ray cluster to join")
    options = parser.parse_args()
    return drive_and_report(
        options.folder, options.executor, step_seconds=options.step_seconds, address=options.address
    )


def drive_and_report(
    folder: Path,
    executor_name: str,
    *,
    step_seconds: float,
    grace_seconds: float = 0.0,
    ttl_seconds: float = 6.0,
    disturbance: Disturbance | None = None,
    address: str | None = None,
) -> int:
    """One run; an error becomes one line on stderr and its exit code."""
    if disturbance is not None and disturbance.point != "commit":
        disturbance.watch()
    searching = functools.partial(
        open_search,
        ttl_seconds=ttl_seconds,
        grace_seconds=grace_seconds,
        before_commit=disturbance.count if disturbance and disturbance.point == "commit" else lambda: None,
    )
    try:
        return drive(folder, executor_name, step_seconds, searching, address=address)
    except AutomlError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code


@dataclass(slots=True)
class Disturbance:
    """SIGKILL to this very process when it reaches a durable point for the n-th time, just before it is done.

    point: "commit" (a transaction that has written), or an audit event of Python: "os.rename", "os.remove", "open".
    """

    point: str
    number: int
    seen: int = 0

    def watch(self) -> None:
        """Count the audit event from now on, until the end of the process."""

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == self.point and "slots" in str(arguments[:1]):
                self.count()

        sys.addaudithook(hook)

    def count(self) -> None:
        self.seen += 1
        if self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def drive(
    folder: Path,
    executor_name: str,
    step_seconds: float,
    searching: Callable[..., Any] = open_search,
    *,
    address: str | None = None,
) -> int:
    executor = make_executor(executor_name, workers=2, address=address, folder=folder / "tune")
    host = functools.partial(
        FormulaHost,
        str(folder / "slots"),
        capacity=CAPACITY,
        step_seconds=step_seconds,
        ledger=str(folder / "ledger"),
    )
    with executor, searching(folder, SETTINGS) as opened:
        dispatcher = Dispatcher(opened.study)
        stop_on_signals(dispatcher, opened.database.retry)
        sys.stdout.write("driving\n")
        sys.stdout.flush()
        if not opened.study.finished:
            executor.run(dispatcher, host)
        if dispatcher.stopped is not None:
            return InterruptedSearch.exit_code
        opened.study.close()
    return 0


def stop_on_signals(dispatcher: Dispatcher, retry: Retry) -> None:
    """The first signal asks for an orderly stop, the second ends the process at once, as `automl search` has it."""

    def handle(number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: os._exit(InterruptedSearch.exit_code))
        dispatcher.stop(signal.Signals(number).name)
        retry.interrupt(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


if __name__ == "__main__":
    sys.exit(main())
