"""A sign of life: a command that has shown nothing for a while says what it is doing and since when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from automl import progress
from automl.cli import console

SILENCE_SECONDS = 12.0

_SERVERS = ("dashboard", "scheduler")
"""Commands that wait most of the time, and are right to be silent."""


@contextmanager
def heartbeat(arguments: Sequence[str], *, silence: float = SILENCE_SECONDS) -> Iterator[None]:
    """Inside the block a line appears whenever nothing was shown for so many seconds."""
    if any(name in arguments for name in _SERVERS):
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(over, silence), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(over: threading.Event, silence: float) -> None:
    began = time.monotonic()
    while not over.wait(min(1.0, silence / 4)):
        passed = time.monotonic() - began
        if min(passed, console.seconds_of_silence()) >= silence:
            doing = progress.current() or "still working"
            console.note(f"{time.strftime('%H:%M:%S')}  {doing} ({passed:.0f} s)")
