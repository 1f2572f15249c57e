"""A thread that trains while somebody else decides: started, halted between two ticks, waited for, and never lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TrainingThread:
    """Calls `tick` until it returns False, whenever it is told to go on; never while it is halted.

    One other thread owns it, and calls everything here. All ticks run in the same thread, so that torch keeps one set
    of helper threads. What a tick raises is raised by the next `finish`.
    """

    def __init__(self, tick: Callable[[], bool]) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._wanted = False  # there is something to do, as far as anybody knows
        self._ticking = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Let it tick; returns at once."""
        with self._changed:
            self._wanted = self._error is None
            self._changed.notify_all()

    def finish(self) -> None:
        """Let it tick until there is nothing to do, and wait for that. Raises what a tick has raised."""
        self.go_on()
        with self._changed:
            self._changed.wait_for(lambda: not (self._wanted or self._ticking))
            error, self._error = self._error, None
        if error is not None:
            raise error

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Nothing ticks inside the block; it waits for the tick under way, and goes on afterwards as before."""
        with self._changed:
            before, self._wanted = self._wanted, False
            self._changed.wait_for(lambda: not self._ticking)
        try:
            yield
        finally:
            if before:
                self.go_on()

    def close(self) -> None:
        """End the thread after the tick under way."""
        with self._changed:
            self._closed, self._wanted = True, False
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while self._may_tick():
            more = False
            try:
                more = self._tick()
            except BaseException as error:  # noqa: BLE001 - the edge of the thread: `finish` raises it
                self._error = error
            with self._changed:
                self._ticking = False
                self._wanted = self._wanted and more
                self._changed.notify_all()

    def _may_tick(self) -> bool:
        """Wait until it is wanted; False if the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._closed)
            self._ticking = not self._closed
            return self._ticking
