"""The metric of one adapter over its sizes, and the knee: the smallest size that is not worse than the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from automl.errors import ConfigError, Problem
from automl.importance.cuts import even_ranks, global_ranks, kept_share, parameters
from automl.metric import METRICS, practical_margin
from automl.storage.squeezes import CutKind, CutRow
from automl.training.cut import TurnedAdapter
from automl.training.runtime import Runtime

BELOW_ONE = (0.25, 0.5)
"""Sizes below even rank 1, as shares of its parameters: only a global cut has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cut and what it measures. share: of the adapter's parameters; kept: of its strength. ranks: by module.

    recovered: what it measures after some training, None without.
    """

    kind: CutKind
    ranks: tuple[int, ...]
    parameters: int
    share: float
    kept: float
    metrics: Mapping[str, float]
    recovered: Mapping[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the ranks."""
        return {name: value for name, value in asdict(self).items() if name != "ranks"}

    def as_row(self, metric: str, *, even_one: int) -> CutRow:
        """Return what is stored. even_one: parameters of rank 1 in every module."""
        return CutRow(
            kind=self.kind,
            parameters=self.parameters,
            even_rank=self.parameters / even_one,
            kept=self.kept,
            value=self.metrics[metric],
            metrics=self.metrics,
            recovered=self.recovered,
        )

    @property
    def is_finite(self) -> bool:
        """Whether every metric is a number."""
        return all(map(math.isfinite, [*self.metrics.values(), *(self.recovered or {}).values()]))

    def is_better_recovered(self, metric: str) -> bool:
        """Whether its training has made it better."""
        return self.recovered is not None and METRICS[metric].gain(self.recovered[metric], self.metrics[metric]) > 0

    def best_metrics(self, metric: str) -> Mapping[str, float]:
        """Those after its training where that has made it better, else the plain ones."""
        return self.recovered if self.recovered is not None and self.is_better_recovered(metric) else self.metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The size to cut to, one of these or none: parameters, those of an even rank, or a share of the adapter's."""

    budget: int | None = None
    rank: int | None = None
    share: float | None = None

    def check(self) -> None:
        """Raise ConfigError in one line for what no adapter could be cut to."""
        given = [name for name in ("budget", "rank", "share") if getattr(self, name) is not None]
        if len(given) > 1:
            raise _wrong(given[1], f"says the size once more; give it or --{given[0]}")
        if self.budget is not None and self.budget < 1:
            raise _wrong("budget", f"{self.budget} parameters keep nothing; 1 direction is the least")
        if self.rank is not None and self.rank < 1:
            raise _wrong("rank", f"rank {self.rank} keeps nothing; 1 is the least, --budget or --share go below it")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise _wrong("share", f"{self.share:g} is no share of an adapter; above 0, at most 1")

    def parameters(self, adapter: TurnedAdapter) -> int | None:
        """How many parameters are wanted of this adapter, None if nothing is. Raises ConfigError if it has too few."""
        if self.rank is not None:
            highest = max(map(len, adapter.strengths))
            if self.rank > highest:
                raise _wrong("rank", f"the adapter has rank {highest}; a cut to rank {self.rank} is none")
            return parameters(even_ranks(adapter.strengths, self.rank), adapter.costs)
        wanted = self.budget if self.share is None else int(self.share * adapter.parameters)
        if wanted is None:
            return None
        least = min(cost for cost, found in zip(adapter.costs, adapter.strengths, strict=True) if found)
        name = "budget" if self.share is None else "share"
        if wanted > adapter.parameters:
            raise _wrong(name, f"{wanted:,} parameters are more than the adapter's {adapter.parameters:,}")
        if wanted < least:
            raise _wrong(name, f"{wanted:,} parameters keep nothing; the smallest direction has {least:,}")
        return wanted


def sizes(highest: int) -> list[float]:
    """Even ranks whose parameters are looked at, smallest first: quarters of one, its doublings, and the highest."""
    doublings = [2**power for power in range(highest.bit_length()) if 2**power < highest]
    return [*BELOW_ONE, *doublings]


def planned(adapter: TurnedAdapter, wanted: int | None) -> list[tuple[CutKind, tuple[int, ...]]]:
    """The cuts of a curve: the whole, then global and even ones, each size once, and the one that is asked for."""
    strengths, costs = adapter.strengths, adapter.costs
    highest = max(map(len, strengths))
    one = parameters(even_ranks(strengths, 1), costs)
    found: list[tuple[CutKind, tuple[int, ...]]] = [("whole", tuple(even_ranks(strengths, highest)))]
    for size in sizes(highest):
        even = even_ranks(strengths, int(size))
        budget = parameters(even, costs) or int(size * one)
        kept = tuple(global_ranks(strengths, costs, budget))
        if any(kept):
            found.append(("global", kept))
        if any(even):
            found.append(("even", tuple(even)))
    if wanted is not None:
        found.append(("asked", tuple(global_ranks(strengths, costs, wanted))))
    return found


def descending(adapter: TurnedAdapter) -> list[tuple[CutKind, tuple[int, ...]]]:
    """The whole and the global cuts of a curve, largest first."""
    whole, *cuts = planned(adapter, None)
    return [whole, *(cut for cut in reversed(cuts) if cut[0] == "global")]


def measured(adapter: TurnedAdapter, runtime: Runtime, kind: CutKind, ranks: tuple[int, ...]) -> Cut:
    """Cut the adapter in place and evaluate it as trials are evaluated."""
    adapter.cut(ranks)
    spent = parameters(ranks, adapter.costs)
    return Cut(
        kind=kind,
        ranks=ranks,
        parameters=spent,
        share=spent / adapter.parameters,
        kept=kept_share(adapter.strengths, ranks),
        metrics=runtime.evaluate(adapter.model, runtime.evaluation_rows, runtime.evaluation_tokens),
    )


def knee(cuts: Sequence[Cut], metric: str) -> Cut:
    """The smallest global cut that is not worse than the whole, as no larger one is either; the whole if none is.

    Not worse: by at most the margin that verifications go by, 1 % of the metric's range or 2 % of the value.
    """
    whole = next(cut for cut in cuts if cut.kind == "whole")
    found = whole
    for cut in sorted((cut for cut in cuts if cut.kind in ("global", "asked")), key=lambda cut: -cut.parameters):
        if not is_not_worse(cut, whole, metric):
            break
        found = cut
    return found


def is_not_worse(cut: Cut, whole: Cut, metric: str) -> bool:
    """Whether the cut loses at most the margin, after its training if that has made it better."""
    value = whole.metrics[metric]
    return METRICS[metric].gain(cut.best_metrics(metric)[metric], over=value) >= -practical_margin(metric, value)


def _wrong(option: str, message: str) -> ConfigError:
    return ConfigError([Problem("", 0, 0, f"--{option}", message)])
