"""A process's sign of life: asking for the next batch is a beat, and a watched process that stops beating is ended.

A kernel that never returns, a lock that is never freed or a deadlock between processes holds a worker for ever, and an
unattended search with it. The watch is faulthandler's, a thread in C: it needs neither the hanging code nor Python's
lock, writes down where every thread stands, and ends the process with exit code 1. Whoever started it starts it again.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_BETWEEN = 1.0
"""Seconds within which beats after the first are free: winding up faulthandler's watch costs about 0.1 ms."""


@dataclass(slots=True)
class _Watch:
    seconds: float
    traces: IO[str]
    wound_up: float = float("-inf")


_watch: _Watch | None = None


@contextmanager
def watched(seconds: float, traces: Path) -> Iterator[None]:
    """End this process if it does not beat for so long inside the block; where it stood is then in the file `traces`.

    The file stays only after such an end. One block at a time; seconds: well above 1.
    """
    global _watch
    with traces.open("w", encoding="utf-8") as file:
        file.write(_name(threading.get_ident()) + "\n")
        file.flush()
        _watch = _Watch(seconds, file)
        beat()
        try:
            yield
        finally:
            _watch = None
            faulthandler.cancel_dump_traceback_later()
    traces.unlink(missing_ok=True)


def beat() -> None:
    """Note that there is progress. Does nothing in a process that is not watched."""
    watch = _watch
    if watch is not None and (now := time.monotonic()) - watch.wound_up >= _BETWEEN:
        watch.wound_up = now
        faulthandler.dump_traceback_later(watch.seconds, file=watch.traces, exit=True)


def where_it_hung(traces: Path) -> str:
    """Innermost call of the watched thread of a process that was ended, `File "…", line 3 in f`; empty if none was."""
    try:
        watched_thread, *lines = traces.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ValueError):
        return ""
    own = next((index for index, line in enumerate(lines) if line.startswith(watched_thread)), len(lines))
    return lines[own + 1].strip() if own + 1 < len(lines) else ""


def _name(thread: int) -> str:
    """The line with which faulthandler begins a thread."""
    return f"Thread 0x{thread:016x}"
