"""Signals as a request to stop in good order. Every command that trains listens to them in the same way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from automl.errors import InterruptedSearch


class StopRequest:
    """A signal that came, perhaps before there was anybody to tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._listener: Callable[[str], None] | None = None

    def then(self, listener: Callable[[str], None]) -> None:
        """Pass the request on to `listener`, now if it has come already."""
        with self._lock:
            self._listener = listener
            reason = self._reason
        if reason:
            listener(reason)

    def request(self, reason: str) -> bool:
        """Note the request; whether somebody listens. Called from a signal handler, so it takes no lock."""
        self._reason = reason
        if self._listener:
            self._listener(reason)
        return self._listener is not None


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """The second signal: what is on disk and in SQL is enough to continue, so nothing is waited for."""
    os._exit(InterruptedSearch.exit_code)


@contextmanager
def signals_as_interruption(what: str = "any trial started") -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into an orderly stop; a second one ends the process at once.

    Before somebody listens there is nothing to wait for: the signal raises InterruptedSearch where it arrives, saying
    that it came before `what`.
    Only the main thread can do this; elsewhere (a notebook's worker thread) signals are left alone.
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
