"""A long call from Python: it works in a thread of its own, while the caller's shows how far it is and hears Ctrl-C.

So no signal handler is installed, Ctrl-C stops in good order whatever is being done, and nothing but the calling
thread writes to the terminal or into the notebook's cell.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO, TypeVar

from automl.execution.stop import StopRequest

T = TypeVar("T")
Show = Callable[[str], None]

_TICK_SECONDS = 0.5
_BETWEEN_LINES = 12.0


def watched(work: Callable[[], T], stop: StopRequest, line: Callable[[], str], *, show: bool) -> T:
    """What `work` returns or raises. On Ctrl-C it is told to stop, and waited for.

    line: what is being done now, asked for from this thread.
    """
    pool = futures.ThreadPoolExecutor(1, thread_name_prefix="automl")
    try:
        with _display(show) as shown:
            return _outcome(pool.submit(work), stop, lambda: shown(line()))
    finally:
        pool.shutdown()


def _outcome(future: futures.Future[T], stop: StopRequest, tick: Callable[[], None]) -> T:
    while True:
        try:
            while not future.done():
                futures.wait([future], timeout=_TICK_SECONDS)
                tick()
            return future.result()
        except KeyboardInterrupt:
            stop.request("Ctrl-C")


def _display(show: bool) -> AbstractContextManager[Show]:
    if not show:
        return _nowhere()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is not None:
        return _in_notebook()
    return _on_terminal(sys.stderr) if sys.stderr.isatty() else _in_lines(sys.stderr)


@contextmanager
def _nowhere() -> Iterator[Show]:
    yield lambda text: None


@contextmanager
def _in_notebook() -> Iterator[Show]:
    """One output of the cell, replaced by the next line."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if text and text != last:
            handle.update({"text/plain": text}, raw=True)
            last = text

    yield show


@contextmanager
def _on_terminal(stream: TextIO) -> Iterator[Show]:
    """One line, overwritten by the next, and gone at the end."""
    began = time.monotonic()

    def show(text: str) -> None:
        width = shutil.get_terminal_size().columns
        stream.write(f"\r\x1b[K{f'{time.monotonic() - began:.0f} s  {text}'[: width - 1]}")
        stream.flush()

    try:
        yield show
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


@contextmanager
def _in_lines(stream: TextIO) -> Iterator[Show]:
    """Every 12 seconds a line of its own."""
    began = shown = time.monotonic()

    def show(text: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= _BETWEEN_LINES:
            stream.write(f"{time.strftime('%H:%M:%S')}  {text} ({now - began:.0f} s)\n")
            stream.flush()
            shown = now

    yield show
