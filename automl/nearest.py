"""The nearest of the known names, for a message about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 60
"""Characters of a name that are compared: comparing takes time with the square of the length."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'topics'?)` if one of the known names is close, whatever the case of its letters; else empty."""
    by_folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name[:_LONGEST].casefold(), list(by_folded), n=1)
    return f" (did you mean {by_folded[close[0]]!r}?)" if close else ""
