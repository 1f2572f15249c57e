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
from pathlib import Path

from automl.errors import AutomlError, InterruptedSearch
from automl.execution import make_executor
from automl.execution.dispatch import Dispatcher
from automl.space.spec import SearchSettings
from tests.faults.search import open_search
from tests.formula import FormulaHost

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
    options = parser.parse_args()
    try:
        return drive(options.folder, options.executor, options.step_seconds)
    except AutomlError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code


def drive(folder: Path, executor_name: str, step_seconds: float) -> int:
    executor = make_executor(executor_name, workers=2, folder=folder / "tune")
    host = functools.partial(
        FormulaHost,
        str(folder / "slots"),
        capacity=CAPACITY,
        step_seconds=step_seconds,
        ledger=str(folder / "ledger"),
    )
    with executor, open_search(folder, SETTINGS) as opened:
        dispatcher = Dispatcher(opened.study)
        stop_on_signals(dispatcher)
        sys.stdout.write("driving\n")
        sys.stdout.flush()
        if not opened.study.finished:
            executor.run(dispatcher, host)
        if dispatcher.stopped is not None:
            return InterruptedSearch.exit_code
        opened.study.close()
    return 0


def stop_on_signals(dispatcher: Dispatcher) -> None:
    """The first signal asks for an orderly stop, the second ends the process at once, as `automl search` has it."""

    def handle(number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: os._exit(InterruptedSearch.exit_code))
        dispatcher.stop(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


if __name__ == "__main__":
    sys.exit(main())
