"""How transformers is called here: quietly, and with its many kinds of errors turned into one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from automl.errors import AutomlError, ModelError
from automl.progress import unwatched_bars


@contextmanager
def quietly(failure: str) -> Iterator[None]:
    """Like `quiet`, and what is raised inside becomes ModelError("<failure>: <first line of it>").

    Errors of this project and lack of memory pass unchanged.
    """
    with quiet():
        try:
            yield
        except (AutomlError, MemoryError):
            raise
        # A damaged file makes transformers and tokenizers raise anything: KeyError, TypeError, even a bare Exception.
        except Exception as error:
            raise ModelError(f"{failure}: {first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars of transformers inside the block; the user's settings are put back after it.

    What it says while loading (a new head was initialised, weights are tied) is expected or checked by the caller.
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with unwatched_bars():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with the second where the first only leads to it; its class without text."""
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":") and rest.strip():
        first = f"{first} {rest.strip().splitlines()[0]}"
    return first or type(error).__name__
