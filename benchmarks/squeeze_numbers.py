"""The numbers of `squeeze_table`, from its records alone: differences on test rows, paired by seed, with intervals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from automl.importance.aggregate import spearman
from automl.metric import METRICS, practical_margin
from automl.verify.statistics import Estimate, joint_level, paired
from benchmarks.report import table

LEVEL = 0.95
GATE_SEEDS = 4
"""Seeds that the gate's answer is given by, as a verification has them; the truth is judged by all."""

MISSING = "–"


class Gate(NamedTuple):
    """What a verification would answer on whether the rank binds, and what the full comparison says of it."""

    answer: str
    truth: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the truth; `not known` is not."""
        return self.answer == self.truth


class Measured:
    """The results of one set."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.plan: Mapping[str, Any] = document["plan"]
        self.metric: str = self.plan["metric"]
        self._results: Mapping[str, Mapping[str, Any]] = document["results"]

    @property
    def full(self) -> str:
        """The arm of the full rank."""
        return f"rank{self.plan['rank']}"

    @property
    def small(self) -> int:
        """An eighth of the full rank."""
        return max(1, int(self.plan["rank"]) // 8)

    def values(self, arm: str, metric: str, split: str = "test") -> dict[int, float]:
        """A metric of an arm by seed, so far as it has been measured."""
        keys = {seed: f"{arm}/{seed}" for seed in self.plan["seeds"]}
        return {seed: self._results[key][split][metric] for seed, key in keys.items() if key in self._results}

    def mean(self, arm: str, metric: str, split: str = "test") -> float | None:
        """Mean over the seeds there are; None if there are none."""
        found = self.values(arm, metric, split)
        return statistics.fmean(found.values()) if found else None

    def means(self, arms: Sequence[str], metric: str, split: str = "test") -> list[float]:
        """Means of these arms over the seeds that all of them have; empty if there are none."""
        values = [self.values(arm, metric, split) for arm in arms]
        seeds = [seed for seed in values[0] if all(seed in found for found in values)]
        return [statistics.fmean(found[seed] for seed in seeds) for found in values] if seeds else []

    def rate(self, arm: str) -> float | None:
        """The learning rate of an arm; None if it has not been trained."""
        return next(
            (self._results[f"{arm}/{s}"]["rate"] for s in self.plan["seeds"] if f"{arm}/{s}" in self._results), None
        )

    def difference(
        self, arm: str, other: str, metric: str, *, level: float = LEVEL, most: int = 1000
    ) -> Estimate | None:
        """Metric of an arm minus that of another, paired by seed; None with fewer than two seeds of both.

        most: seeds that are used, the first ones.
        """
        ours, theirs = self.values(arm, metric), self.values(other, metric)
        seeds = [seed for seed in ours if seed in theirs][:most]
        if len(seeds) < 2:
            return None
        grain = 1.0 / self.plan["test"] if metric == "accuracy" else 0.0
        return paired([ours[seed] - theirs[seed] for seed in seeds], level, grain=grain)

    def is_not_worse(self, arm: str, other: str, metric: str, *, level: float = LEVEL, most: int = 1000) -> bool | None:
        """Whether the interval rules out a loss of the margin of verifications: 1 % of the range, 2 % of a loss."""
        found, value = self.difference(arm, other, metric, level=level, most=most), self.mean(other, metric)
        if found is None or value is None:
            return None
        margin = practical_margin(metric, value)
        return found.low > -margin if METRICS[metric].direction == "maximize" else found.high < margin

    def better(self, arm: str, other: str, split: str) -> str:
        """The arm with the lower mean loss; a dash if one is missing."""
        losses = self.means((arm, other), "loss", split)
        return min((arm, other), key=dict(zip((arm, other), losses, strict=True)).__getitem__) if losses else MISSING

    def stability(self) -> float | None:
        """Mean rank correlation of the squeezed ranks of modules over all pairs of seeds, cut to an eighth."""
        keys = [f"squeeze/{seed}" for seed in self.plan["seeds"]]
        ranks = [self._results[key]["ranks"][str(self.small)] for key in keys if key in self._results]
        pairs = [spearman(*pair) for pair in combinations(ranks, 2)]
        return statistics.fmean(pairs) if pairs else None

    def cost(self) -> float | None:
        """CPU time of a squeeze over that of a full training, means of the same runs."""
        seeds = [seed for seed in self.plan["seeds"] if f"squeeze/{seed}" in self._results]
        of = [
            statistics.fmean(self._results[f"{arm}/{seed}"]["seconds"] for seed in seeds)
            for arm in ("squeeze", self.full)
            if seeds
        ]
        return of[0] / of[1] if of else None

    def gate(self) -> Gate | None:
        """By a half and a quarter of the rank on GATE_SEEDS, and by all ranks and seeds."""
        lower = [self.small * factor for factor in (1, 2, 4)]
        arms = [f"rank{rank}" for rank in (*lower, self.plan["rank"], 2 * self.plan["rank"])]
        known = self.means(arms, self.metric)
        if not known:
            return None
        best = max if METRICS[self.metric].direction == "maximize" else min
        gain = METRICS[self.metric].gain(best(known[:3]), over=best(known[3:]))
        truth = "does not bind" if gain >= -practical_margin(self.metric, known[3]) else "binds"
        return Gate(self._answer(arms[1:3]), truth)

    def _answer(self, arms: Sequence[str]) -> str:
        level = joint_level(len(arms))
        held = [self.is_not_worse(arm, self.full, self.metric, level=level, most=GATE_SEEDS) for arm in arms]
        if any(held):
            return "does not bind"
        found = self.difference(arms[-1], self.full, self.metric, level=level, most=GATE_SEEDS)
        assert found is not None
        return "not known" if found.low <= 0.0 <= found.high else "binds"


def shown(found: Estimate | None) -> str:
    """`-.045 [-.077, -.013]`."""
    if found is None:
        return MISSING
    mean, low, high = (f"{value:+.3f}".replace("0.", ".", 1) for value in found[:3])
    return f"{mean} [{low}, {high}]"


def plain(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash."""
    return MISSING if value is None else format(value, form)


def yes(value: bool | None) -> str:
    """A verdict, or a dash."""
    return MISSING if value is None else "yes" if value else "no"


def rows_of(measured: Measured) -> dict[str, str]:
    """The lines of the table for one set."""
    m, small, metric = measured, measured.small, measured.metric
    full, cut, even = m.full, f"cut/global/{small}", f"cut/even/{small}"
    trained = f"rank{small}+"
    gate = m.gate()
    compared: dict[str, Callable[[str], Estimate | None]] = {
        f"global cut to {small} − full": lambda name: m.difference(cut, full, name),
        f"even cut to {small} − full": lambda name: m.difference(even, full, name),
        f"global − even cut, {small}": lambda name: m.difference(cut, even, name),
        f"global − even cut, {small // 2 or 1}": lambda name: m.difference(
            f"cut/global/{small // 2 or 1}", f"cut/even/{small // 2 or 1}", name
        ),
        f"global − even cut, {2 * small}": lambda name: m.difference(
            f"cut/global/{2 * small}", f"cut/even/{2 * small}", name
        ),
        "global − even cut, both recovered": lambda name: m.difference("recovered/global", "recovered/even", name),
        f"global cut − trained at {small}": lambda name: m.difference(cut, trained, name),
        f"recovered − trained at {small}, equal steps": lambda name: m.difference("recovered/global", trained, name),
        f"trained at {small}, equal steps − full": lambda name: m.difference(trained, full, name),
        f"trained at {small} − full": lambda name: m.difference(f"rank{small}", full, name),
        "trained with squeezed − even ranks": lambda name: m.difference("as-squeezed", f"rank{small}", name),
        "trained with squeezed − random ranks": lambda name: m.difference("as-squeezed", "as-random", name),
    }
    lines = {"metric": metric, "seeds": str(len(m.values(full, metric)))}
    lines |= {f"{name}: {each}": shown(of(each)) for name, of in compared.items() for each in (metric, "loss")}
    longer = m.difference(f"long/{round(1.5 * m.plan['steps'])}", full, "loss")
    return lines | {
        f"full: {metric}, loss": f"{plain(m.mean(full, metric))}, {plain(m.mean(full, 'loss'))}",
        "full: 1.5 times the steps, loss, mean of two seeds": MISSING if longer is None else f"{longer.mean:+.3f}",
        f"cut to {small} not worse than full: {metric}": yes(m.is_not_worse(cut, full, metric)),
        f"cut to {small} not worse than full: loss": yes(m.is_not_worse(cut, full, "loss")),
        f"recovered or trained at {small}: by validation loss, by test loss": " / ".join(
            m.better("recovered/global", trained, split) for split in ("validation", "test")
        ),
        "rank binds: gate, truth": MISSING if gate is None else f"{gate.answer}; {gate.truth}",
        "Spearman of squeezed ranks": plain(m.stability(), ".2f"),
        "squeeze / training, CPU time": plain(m.cost(), ".1%"),
        **arms_of(m),
    }


def arms_of(measured: Measured) -> dict[str, str]:
    """Means of every trained arm with its learning rate."""
    ranks = [measured.small * 2**power for power in range(5)]
    arms = [*(f"rank{rank}" for rank in ranks), f"rank{measured.small}+", "as-squeezed", "as-random"]
    arms += ["recovered/global", "recovered/even"]
    return {
        f"arm {arm}: {measured.metric}, loss (rate)".replace(measured.metric, "metric"): (
            f"{plain(measured.mean(arm, measured.metric))}, {plain(measured.mean(arm, 'loss'))}"
            f" ({plain(measured.rate(arm), '.2g')})"
        )
        for arm in arms
        if measured.rate(arm) is not None
    }


def print_table(folder: Path, sets: Sequence[str]) -> dict[str, dict[str, str]]:
    """Print what the records say of these sets, and return it; sets without a record are left out."""
    files = {name: file for name in sets if (file := folder / f"{name}.json").exists()}
    found = {name: rows_of(Measured(json.loads(file.read_text(encoding="utf-8")))) for name, file in files.items()}
    lines = dict.fromkeys(line for of_set in found.values() for line in of_set)
    print(table([{"": line, **{name: of.get(line, MISSING) for name, of in found.items()}} for line in lines]))
    return found
