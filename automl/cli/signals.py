"""How a command ends before its work is done: in good order at the first signal, at once at the second.

Only commands end the process. What they call is asked to stop, or finds that it may not write any more, and raises.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from automl.errors import InterruptedSearch, LeaseLostError
from automl.execution.stop import StopRequest

logger = logging.getLogger(__name__)


@contextmanager
def signals_as_interruption(what: str = "any trial started") -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into an orderly stop; a second one ends the process at once.

    Before somebody listens there is nothing to wait for: the signal raises InterruptedSearch where it arrives, saying
    that it came before `what`. Only the main thread can do this; elsewhere signals are left alone.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        for each in watched:
            signal.signal(each, _end_at_once)
        if not stop.request(name):
            raise InterruptedSearch(f"stopped ({name}) before {what}; the same command starts it")

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_without_lease(message: str) -> None:
    """Another driver has the study: nothing more may be written, so nothing is waited for."""
    logger.critical("%s", message)
    os._exit(LeaseLostError.exit_code)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """The second signal: what is on disk and in SQL is enough to continue, so nothing is waited for."""
    os._exit(InterruptedSearch.exit_code)
