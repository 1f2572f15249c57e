"""Names and options of samplers and pruners, checked with a message that says what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from automl.errors import ConfigError, Problem
from automl.trial import Scalar

T = TypeVar("T")

Options = Mapping[str, Scalar | None]
"""Option name -> value; in a table of defaults None means "no value unless given"."""


def refuse(key: str, message: str) -> ConfigError:
    """A problem of `search:` in the space file."""
    return ConfigError([Problem("space file", 0, 0, f"search.{key}", message)])


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry called `name`; raises ConfigError listing the known ones and the nearest."""
    if name not in table:
        raise refuse(kind, _unknown(name, table))
    return table[name]


def merge_options(kind: str, given: Mapping[str, Scalar], defaults: Options) -> dict[str, Scalar]:
    """Defaults overlaid with what the user gave; raises ConfigError for an unknown name."""
    for name in given:
        if name not in defaults:
            message = _unknown(name, defaults) if defaults else f"unknown {name!r}; this {kind} takes no options"
            raise refuse(f"{kind}_options", message)
    return {name: value for name, value in {**defaults, **given}.items() if value is not None}


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {name!r}; known: {', '.join(known)}{hint}"
