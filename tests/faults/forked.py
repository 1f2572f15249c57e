"""Drivers that start in milliseconds, forked from a process that has loaded everything, to be killed by the hundred."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.faults.drive import Disturbance, drive_and_report

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.faults.drive", "automl.execution.inline", "automl.storage.optuna_storage", "automl.storage.optuna_retry"]
)

_serial = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a driver runs: see `tests.faults.drive`."""

    step_seconds: float = 0.005
    grace_seconds: float = 60.0
    ttl_seconds: float = 6.0
    disturbance: Disturbance | None = None


class ForkedDriver:
    """One run of the study in a folder, inline, in a process of its own."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self._log = folder / f"driver-{next(_serial)}.log"
        self.began = time.monotonic()
        self.process: ForkServerProcess = _context.Process(target=_run, args=(folder, self._log, options), daemon=True)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written: "driving" once the study is open, the error's line at the end."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def wait_until_driving(self, seconds: float = 240.0) -> float:
        """Seconds from its start until the study was open. Raises RuntimeError if it ended before."""
        deadline = time.monotonic() + seconds
        while "driving\n" not in self.log:
            if (not self.alive and "driving\n" not in self.log) or time.monotonic() > deadline:
                raise RuntimeError(f"driver did not start: {self.process.exitcode} {self.log}")
            time.sleep(0.005)
        return time.monotonic() - self.began

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still lives."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def finish(self, seconds: float = 240.0) -> int:
        """Wait for the end; -9 if it was killed. A driver that does not end is killed, and is an error."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"driver did not end within {seconds:.0f} s: {self.log[-1000:]}")
        return self.process.exitcode


def _run(folder: Path, log: Path, options: Options) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = 1
    try:
        code = _driven(folder, options)
    except Exception:  # noqa: BLE001 - into the driver's own log, where it is looked for
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _driven(folder: Path, options: Options) -> int:
    return drive_and_report(
        folder,
        "inline",
        step_seconds=options.step_seconds,
        grace_seconds=options.grace_seconds,
        ttl_seconds=options.ttl_seconds,
        disturbance=options.disturbance,
    )
