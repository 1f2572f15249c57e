"""A request to stop in good order, from a signal, a key or another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from automl.errors import InterruptedSearch


class Halt(NamedTuple):
    """Why no trial should go on, in words, and what the run ends with then."""

    reason: str
    ending: type[InterruptedSearch] = InterruptedSearch


class StopRequest:
    """Whoever works says with `then` how to stop; whoever wants it to stop calls `request`, before or after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listener: Callable[[str], None] | None = None
        self.reason: str | None = None

    def then(self, listener: Callable[[str], None]) -> None:
        """Pass the request on to `listener`, now if it has come already."""
        with self._lock:
            self._listener = listener
            reason = self.reason
        if reason:
            listener(reason)

    def request(self, reason: str) -> bool:
        """Note the request; whether somebody listens. May be called from a signal handler, so it takes no lock."""
        self.reason = reason
        if self._listener:
            self._listener(reason)
        return self._listener is not None
