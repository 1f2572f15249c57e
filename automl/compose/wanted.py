"""What a person asks for: which trials, mixed in which ways, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from automl.compose.mixing import FUSION, HOWS, TAKES_DENSITY, TAKES_RANK, How, Recipe
from automl.errors import ConfigError, Problem
from automl.methods.merging import Majority
from automl.nearest import did_you_mean

BEST = 5
DENSITIES = (0.2, 0.5)
"""Shares of entries that a vote keeps: that of Yadav et al. 2023, section 5, and a milder one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """of: so many of the best trials, or their numbers. how: ways of mixing; empty: all that these adapters can be
    mixed in without training. densities, majority: of a vote. rank: of what is cut to one; None: the highest of the
    adapters. steps: of a fusion; None: those of a trial.
    """

    of: int | Sequence[int] = BEST
    how: Sequence[str] = ()
    densities: Sequence[float] = DENSITIES
    majority: str = "total"
    rank: int | None = None
    steps: int | None = None

    def check(self) -> None:
        """Raise ConfigError, all problems at once, for what cannot be done with any adapters."""
        if problems := list(self._problems()):
            raise ConfigError(problems)

    def recipes(self, how: How) -> list[Recipe]:
        """The mixtures of one way, one for each density where it takes one."""
        densities = dict.fromkeys(self.densities) if how in TAKES_DENSITY else (None,)
        rank, steps = self.rank if how in TAKES_RANK else None, self.steps if how == FUSION else None
        majority: Majority = "frequency" if self.majority == "frequency" else "total"
        return [Recipe(how=how, density=density, rank=rank, majority=majority, steps=steps) for density in densities]

    def _problems(self) -> Iterator[Problem]:
        if isinstance(self.of, int):
            if self.of < 2:
                yield _wrong("of", f"{self.of} adapters are no mixture; 2 are the least")
        elif len(set(self.of)) < 2:
            yield _wrong("trials", f"{', '.join(map(str, self.of)) or 'none'}: a mixture needs two different trials")
        for how in self.how:
            if how not in HOWS:
                yield _wrong("how", f"{how!r} is not known; known: {', '.join(HOWS)}{did_you_mean(how, HOWS)}")
        if not self.densities:
            yield _wrong("density", "none is given; a vote needs one")
        for density in self.densities:
            if not 0.0 < density < 1.0:
                yield _wrong("density", f"{density:g} is no share of entries to keep; above 0, below 1")
        if self.majority not in get_args(Majority):
            yield _wrong("majority", f"{self.majority!r} is not known; known: {', '.join(get_args(Majority))}")
        if self.rank is not None and self.rank < 1:
            yield _wrong("rank", f"rank {self.rank} keeps nothing; 1 is the least")
        if self.steps is not None and self.steps < 1:
            yield _wrong("steps", f"{self.steps} steps train nothing; 1 is the least")
        elif self.steps is not None and FUSION not in self.how:
            yield _wrong("steps", f"only {FUSION} trains; add --how {FUSION}")


def _wrong(option: str, message: str) -> Problem:
    return Problem("", 0, 0, f"--{option}", message)
