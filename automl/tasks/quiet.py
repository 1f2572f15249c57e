"""Third-party libraries kept to themselves while data is prepared: no progress bars, no threads of tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import datasets

from automl.progress import unwatched_bars

_PARALLELISM = "TOKENIZERS_PARALLELISM"


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars of `datasets` inside; the previous state returns afterwards."""
    was_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with unwatched_bars():
            yield
    finally:
        if not was_disabled:
            datasets.enable_progress_bars()


@contextmanager
def single_threaded_tokenizers() -> Iterator[None]:
    """No thread pool of `tokenizers` inside: a process that has used one can hang after a fork (tokenizers #187)."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_PARALLELISM, None)
        else:
            os.environ[_PARALLELISM] = before
