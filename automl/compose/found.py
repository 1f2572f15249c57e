"""What was found of mixtures, as values and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from automl.compose.mixing import Recipe
from automl.metric import METRICS
from automl.verify.statistics import LEVEL, Estimate, Verdict, in_percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Adapters made into one, or (recipe None) one alone, and what it measures on the validation rows.

    trials: whose they are. parameters: all numbers in its file, the head's among them.
    """

    name: str
    trials: tuple[int, ...]
    recipe: Recipe | None
    parameters: int
    metrics: Mapping[str, float]

    def place(self, metric: str) -> tuple[float, float]:
        """Where it stands among others, the best first: by the metric, of equals by the loss."""
        return place_of(self.metrics, metric)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def place_of(metrics: Mapping[str, float], metric: str) -> tuple[float, float]:
    """Where these metrics stand among others, the best first: by this one, of equals by the loss."""
    values = METRICS[metric].loss(metrics[metric]), metrics["loss"]
    return values if all(map(math.isfinite, values)) else (math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The chosen mixture against the winner on test rows: the same rows, so differences are paired.

    difference: of the metric, with an interval over rows; None if the task does not tell what becomes of each row.
    """

    rows: int
    mixture: Mapping[str, float]
    winner: Mapping[str, float]
    difference: Estimate | None
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        difference = None if self.difference is None else self.difference._asdict()
        return {**asdict(self), "difference": difference, "level": LEVEL}

    def sentence(self, metric: str) -> str:
        """What the test rows say."""
        ours, theirs = self.mixture[metric], self.winner[metric]
        said = f"on {self.rows:,} test rows: {metric} {ours:.4f} against {theirs:.4f}"
        if self.difference is None:
            return f"{said}; what becomes of each row is not told, so there is no interval"
        mean, low, high, _ = self.difference
        return f"{said}, {mean:+.4f} [{low:+.4f}, {high:+.4f}] ({in_percent(LEVEL)}, over rows): {self.verdict}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Composed:
    """What was found. adapters: each alone, the best first. mixtures: all that were measured, the best first.

    winner: the study's best trial, alone. chosen: the best mixture. rows: of validation. test: None if there are no
    test rows. output: folder of the chosen one, None if it was not written. notes: what a person should know.
    """

    study: str
    metric: str
    rows: int
    adapters: tuple[Mixture, ...]
    mixtures: tuple[Mixture, ...]
    winner: Mixture
    chosen: Mixture
    test: Comparison | None
    output: str | None
    base: str
    seconds: float
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<automl mixtures of {self.study}: {self.headline()}>"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {name: getattr(self, name) for name in ("study", "metric", "rows", "output", "base", "notes")}
        lists = {name: [each.as_dict() for each in getattr(self, name)] for name in ("adapters", "mixtures")}
        ends = {"winner": self.winner.as_dict(), "chosen": self.chosen.as_dict()}
        test = None if self.test is None else self.test.as_dict()
        return {**plain, **lists, **ends, "test": test, "seconds": self.seconds, "headline": self.headline()}

    def headline(self) -> str:
        """What may be believed, in a sentence or two."""
        ours, theirs = self.chosen.metrics[self.metric], self.winner.metrics[self.metric]
        is_ahead = self.chosen.place(self.metric) < self.winner.place(self.metric)
        said = "is ahead of" if is_ahead else "the best mixture, is not ahead of"
        head = (
            f"{self.chosen.name} of trials {', '.join(map(str, self.chosen.trials))}{'' if is_ahead else ','} {said}"
            f" {self.winner.name} on validation rows: {self.metric} {ours:.4f} against {theirs:.4f}"
        )
        return head if self.test is None else f"{head}; {self.test.sentence(self.metric)}"
