"""What is being done right now, in a line: told by who works, asked by who shows it. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Line = Callable[[], str]

_lines: list[Line] = []


@contextmanager
def telling(line: Line) -> Iterator[None]:
    """Inside the block `current` is this line, made anew each time; it may be asked for from another thread."""
    _lines.append(line)
    try:
        yield
    finally:
        _lines.remove(line)


def current() -> str:
    """The line of the innermost work in progress; empty if nobody tells anything."""
    return _lines[-1]() if _lines else ""


@contextmanager
def unwatched_bars() -> Iterator[None]:
    """Inside the block no bar of tqdm, shown or not, starts tqdm's thread, which never ends (tqdm 4.67, std.py)."""
    from tqdm import tqdm

    before, tqdm.monitor_interval = tqdm.monitor_interval, 0
    try:
        yield
    finally:
        tqdm.monitor_interval = before
