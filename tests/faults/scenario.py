"""What a fault scenario is, and what it reports."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Tier = Literal["ci", "full", "soak"]


_SPIN_SECONDS = 0.03
_SPINS = 20


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

    def expect_within(self, name: str, seconds: float, limit: float, text: str) -> None:
        """Keep the worst time under a name, and note a violation if it is over the limit on this machine."""
        self.worst(name, seconds)
        if seconds > limit:
            factor = max(stretch() for _ in range(_SPINS))  # one alone may fall into a quiet moment
            self.worst("machine_stretch", factor)
            self.expect(seconds <= limit * factor, f"{text}: {seconds:.1f} s, at most {limit:.0f} s x {factor:.1f}")

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


def stretch() -> float:
    """How much slower than alone this process runs at this moment: wall clock per processor time of a short spin.

    Bounds on time are stretched by it, so that a crowded machine is not taken for a slow recovery.
    """
    wall, own = time.monotonic(), time.process_time()
    while time.process_time() - own < _SPIN_SECONDS:
        pass
    return max(1.0, (time.monotonic() - wall) / _SPIN_SECONDS)


def sizes(ci: int, full: int, soak: int | None = None) -> dict[Tier, int]:
    """How much in each tier; the soak tier defaults to ten times the full one."""
    return {"ci": ci, "full": full, "soak": 10 * full if soak is None else soak}
