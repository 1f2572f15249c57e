"""Taking the answer out of a text by a regular expression of the user's, which must not be able to run for ever."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from automl.errors import MetricError

SECONDS = 1.0
"""Longest search of one text. A pattern that is no trap takes microseconds."""

LONGEST = 500


def extraction_mistake(pattern: str) -> str:
    """What is wrong with a pattern, or ''."""
    if len(pattern) > LONGEST:
        return f"is {len(pattern)} characters long; at most {LONGEST} are allowed"
    try:
        compiled = _compiled(pattern)
    except (_error(), RecursionError, OverflowError, MemoryError, ValueError) as error:
        return f"is not a regular expression: {' '.join(str(error).split())}"
    if compiled.groups > 1:
        return f"has {compiled.groups} groups; put the answer into one, and write the others as (?:…)"
    if compiled.search("") is not None:
        return "matches nothing at all as well, so that it would find it at the beginning of every text"
    return ""


def extracted(pattern: str, text: str) -> str | None:
    """The group of the first match, or the whole match if the pattern has none; None if nothing matches.

    Raises MetricError if that takes longer than SECONDS: the module `re` could not be stopped, `regex` can.
    """
    try:
        found = _compiled(pattern).search(text, timeout=SECONDS)
    except TimeoutError:
        what = f"task.extract {pattern!r} took longer than {SECONDS:g} s on a text of {len(text):,} characters"
        raise MetricError(f"{what}; a repeated group that holds a repeat, such as (a+)+, does that") from None
    if found is None:
        return None
    return (found[found.re.groups] or "").strip()


@lru_cache(maxsize=16)
def _compiled(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)


def _error() -> type[Exception]:
    import regex

    error: type[Exception] = regex.error
    return error


def json_pattern_mistake(pattern: object) -> str:
    """What is wrong with a pattern of a JSON schema, or ''; those are searched by `re`, without a time limit."""
    if not isinstance(pattern, str):
        return "is no text"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression: {error}"
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern))
    if re.search(r"\)[*+{]|\\[1-9]", bare):
        return "repeats a group, which can take for ever"
    return "" if len(re.findall(r"[*+]|\{", bare)) <= 2 else "has more than 2 repeats (*, +, {n})"
