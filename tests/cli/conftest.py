"""Commands set up the process's logging; tests of other units must not see it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Put handlers, levels and the hook for warnings back."""
    root = logging.getLogger()
    handlers, show = root.handlers[:], warnings.showwarning
    known = [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    levels = {each: each.level for each in known}
    yield
    logging.captureWarnings(False)
    warnings.showwarning = show
    root.handlers[:] = handlers
    for each in [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]:
        each.setLevel(levels.get(each, logging.NOTSET))
