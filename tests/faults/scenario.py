"""What a fault scenario is, and what it reports."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Tier = Literal["ci", "full", "soak"]


class SkipScenario(Exception):
    """The scenario cannot run here; the text says why."""


@dataclass(kw_only=True)
class Findings:
    """What a scenario did. count: how often something was injected; violations: one line each, none if all held."""

    count: int = 0
    violations: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def worst(self, name: str, value: float) -> None:
        """Keep the largest of the values reported under a name."""
        self.details[name] = round(max(value, self.details.get(name, 0.0)), 3)

    def expect(self, holds: bool, text: str) -> None:
        """Note a violation unless it holds."""
        if not holds:
            self.violations.append(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row of the catalogue. injected: what is counted. sizes: how many of it in each tier, 0 for none."""

    id: str
    title: str
    injected: str
    sizes: Mapping[Tier, int]
    run: Callable[[Trial], Findings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One execution of a scenario: how much, with which luck, where."""

    tier: Tier
    size: int
    chance: random.Random
    folder: Path

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            yield Path(name)


def sizes(ci: int, full: int, soak: int | None = None) -> dict[Tier, int]:
    """How much in each tier; the soak tier defaults to ten times the full one."""
    return {"ci": ci, "full": full, "soak": 10 * full if soak is None else soak}
