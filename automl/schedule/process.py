"""A process of its own for a command, so that whatever becomes of it leaves its parent alone, and the reverse.

Run as a program (`python -m automl.schedule.process PARENT COMMAND ...`) it asks the kernel for SIGTERM when the parent
dies, so that a sweep whose scheduler was killed ends in order and can be continued at once, then becomes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_TAIL_BYTES = 4096
_LOG_BYTES = 10 << 20


class Child:
    """A running command. Its output is appended to `log`; it leads a process group of its own."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        self.log = log
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-m", "automl.schedule.process", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self._kill_at: float | None = None
        self._is_swept = False

    @property
    def pid(self) -> int:
        """Process id, and id of its group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code once it has ended (minus the signal's number if one killed it), else None.

        One that was asked to stop and is still there after its grace is killed here, with its whole group.
        """
        code = self._process.poll()
        is_overdue = self._kill_at is not None and time.monotonic() >= self._kill_at
        if (code is not None or is_overdue) and not self._is_swept:
            self._kill_group()  # also what a process that has ended may have left behind
            self._is_swept = True
        return code

    def stop(self, grace_seconds: float) -> None:
        """Ask it to end in order; after the grace `poll` kills it. Asking again changes nothing."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace_seconds
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with its whole group."""
        self._kill_group()
        self._process.wait()

    def tail(self) -> list[str]:
        """The last lines it has written."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def become(parent: int, command: Sequence[str]) -> None:
    """Tie this process to its parent's life, then turn into the command. Linux only; elsewhere the tie is left out."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit(128 + signal.SIGTERM)  # it died before it could be watched
    os.execvp(command[0], list(command))  # noqa: S606 - as the parent says


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
