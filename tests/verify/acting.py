"""Doing something at a known place of somebody else's work: when it logs a certain line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class On(logging.Handler):
    """Does something in the thread that logs a line with these words, so at a known place of its work."""

    def __init__(self, words: str, act: Callable[[], None]) -> None:
        super().__init__()
        self._words = words
        self._act = act

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self._act()


@contextmanager
def acting(*handlers: On) -> Iterator[None]:
    logger = logging.getLogger("automl")
    before = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
