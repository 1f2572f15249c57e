"""What trials were trained on, as budgets count it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Tokens without padding, and rows as often as they were used."""

    tokens: int = 0
    examples: int = 0

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Work:
        """What the user attributes of an ended trial tell of it."""
        return cls(attributes.get("tokens", 0), attributes.get("examples", 0))

    def plus(self, other: Work) -> Work:
        """The sum of both."""
        return Work(self.tokens + other.tokens, self.examples + other.examples)


NOTHING = Work()
