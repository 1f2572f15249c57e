"""Answers that several viewers may share for a moment: whatever is asked often is computed once per second."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

_MOST = 256


class Recent:
    """Keeps each answer for some seconds. Of simultaneous askers of one question, one computes and all others wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, seconds: float, compute: Callable[[], T]) -> T:
        """The answer to `key`, at most so many seconds old. What `compute` raises is raised and not kept."""
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            kept = self._kept.get(key)
            if kept is not None and self._clock() - kept[0] < seconds:
                value: T = kept[1]
                return value
            try:
                value = compute()
            except BaseException:
                if kept is None:  # nothing is kept of questions that have no answer, however many are asked
                    with self._lock:
                        self._locks.pop(key, None)
                raise
            with self._lock:
                self._kept[key] = (self._clock(), value)
                self._kept.move_to_end(key)
                while len(self._kept) > _MOST:
                    oldest, _ = self._kept.popitem(last=False)
                    self._locks.pop(oldest, None)
            return value
