"""The numbers of `squeeze_table`, from its records alone: differences on test rows, paired by seed, with intervals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from automl.importance.aggregate import spearman
from automl.lora import Hyperparameters
from automl.metric import METRICS, practical_margin
from automl.results.rank_gate import RankGate
from automl.verify.arms import choose_comparisons
from automl.verify.lower import rank_answer
from automl.verify.plan import Arm, ArmKind, Plan, Training
from automl.verify.protocol import Scores
from automl.verify.statistics import Estimate, paired
from benchmarks.report import table

LEVEL = 0.95
GATE_SEEDS = 4
"""Seeds that the gate's answer is given by, as a verification has them; the truth is judged by all."""

MISSING = "–"


class Gate(NamedTuple):
    """What a verification answers on whether the rank binds, and what the full comparison says of it."""

    found: RankGate
    truth: str

    @property
    def is_right(self) -> bool | None:
        """Whether the proven side is the truth; None if none is proven."""
        return None if self.found.answer == "not known" else self.found.answer == self.truth

    @property
    def leans_right(self) -> bool | None:
        """Whether the likelier side is, where none is proven; None if there is no likelier one."""
        towards = self.found.lean and self.found.lean.towards
        return None if towards is None else towards == self.truth

    def __str__(self) -> str:
        lean = self.found.lean
        return self.found.answer if lean is None else f"{self.found.answer}; {lean.in_words}"


class Asked(NamedTuple):
    """How often a gate by some of the seeds was right: of so many choices of seeds, proven and leaning, and wrong."""

    choices: int
    proven: int
    leaning: int
    wrong_proofs: int
    wrong_leans: int

    @classmethod
    def of(cls, gates: Sequence[Gate]) -> Asked:
        """Count them."""
        proofs, leans = [gate.is_right for gate in gates], [gate.leans_right for gate in gates]
        return cls(len(gates), proofs.count(True), leans.count(True), proofs.count(False), leans.count(False))

    def __str__(self) -> str:
        silent = self.choices - sum(self[1:])
        return (
            f"proven {self.proven} right, {self.wrong_proofs} wrong; leaning {self.leaning} right, {self.wrong_leans}"
            f" wrong; no lean {silent}; of {self.choices}"
        )


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

    def difference(self, arm: str, other: str, metric: str) -> Estimate | None:
        """Metric of an arm minus that of another, paired by seed; None with fewer than two seeds of both."""
        ours, theirs = self.values(arm, metric), self.values(other, metric)
        seeds = [seed for seed in ours if seed in theirs]
        if len(seeds) < 2:
            return None
        grain = 1.0 / self.plan["test"] if metric == "accuracy" else 0.0
        return paired([ours[seed] - theirs[seed] for seed in seeds], LEVEL, grain=grain)

    def is_not_worse(self, arm: str, other: str, metric: str) -> bool | None:
        """Whether the interval rules out a loss of the margin of verifications: 1 % of the range, 2 % of a loss."""
        found, value = self.difference(arm, other, metric), self.mean(other, metric)
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
        """By a half and a quarter of the rank on the first GATE_SEEDS, against all ranks on all seeds."""
        seeds = self._gate_seeds()
        return self._gate(seeds[:GATE_SEEDS], seeds) if len(seeds) >= GATE_SEEDS else None

    def gates(self, number: int, *, unseen: bool) -> list[Gate]:
        """By every choice of so many of the seeds. unseen: against the seeds not chosen alone, else against all."""
        seeds = self._gate_seeds()
        chosen = combinations(seeds, number) if len(seeds) > number else ()
        return [self._gate(by, [seed for seed in seeds if not (unseen and seed in by)]) for by in chosen]

    def _gate_seeds(self) -> list[int]:
        """Seeds with which every rank has been trained."""
        found = [self.values(arm, self.metric) for arm in self._gate_arms()]
        return [seed for seed in self.plan["seeds"] if all(seed in values for values in found)]

    def _gate_arms(self) -> list[str]:
        """From an eighth of the rank to twice of it."""
        return [f"rank{self.small * 2**power}" for power in range(5)]

    def _gate(self, seeds: Sequence[int], against: Sequence[int]) -> Gate:
        """By these seeds; the truth by the means of the others."""
        metric = METRICS[self.metric]
        found = [self.values(arm, self.metric) for arm in self._gate_arms()]
        means = [statistics.fmean(values[seed] for seed in against) for values in found]
        losses = [metric.loss(value) for value in means]
        is_free = min(losses[:3]) - min(losses[3:]) <= practical_margin(self.metric, means[3])
        return Gate(self._answer(seeds), "does not bind" if is_free else "binds")

    def _answer(self, seeds: Sequence[int]) -> RankGate:
        """What a verification of the full rank by these seeds says, with a half and a quarter of it as lower ranks."""
        rank = int(self.plan["rank"])
        arms = [_arm(rank, "finalist", self.rate)] + [_arm(low, "lower", self.rate) for low in (rank // 4, rank // 2)]
        full = statistics.fmean(self.values(self.full, self.metric)[seed] for seed in seeds)
        plan = Plan(
            study=self.plan["name"],
            metric=self.metric,
            steps=self.plan["steps"],
            seeds=tuple(seeds),
            tuning_seeds=(),
            margin=practical_margin(self.metric, full),
            arms=tuple(arms),
            comparisons=tuple(choose_comparisons(arms)),
            winner_value=full,
            model="",
            data="",
            test="",
            test_rows=self.plan["test"],
            precision=self.plan["precision"],
            majority={},
        )
        scores = Scores()
        for arm in arms:
            for seed, value in self.values(arm.name, self.metric).items():
                training = Training(arm=arm.name, seed=seed, learning_rate=arm.learning_rates[0], split="test")
                scores.add(training, {self.metric: value})
        answer = rank_answer(plan, scores)
        assert answer is not None
        return answer


def _arm(rank: int, kind: ArmKind, rate_of: Callable[[str], float | None]) -> Arm:
    """The arm of a rank at its rate, as a verification has it."""
    rate = rate_of(f"rank{rank}") or 0.0
    return Arm(
        name=f"rank{rank}",
        title=f"rank {rank}",
        kind=kind,
        trial=0 if kind == "finalist" else None,
        params={},
        hyper=Hyperparameters(rank=rank, learning_rate=rate),
        trainable_params=rank,
        learning_rates=(rate,),
    )


def shown(found: Estimate | None) -> str:
    """`-.045 [-.077, -.013]`."""
    if found is None:
        return MISSING
    mean, low, high = (f"{value:+.3f}".replace("0.", ".", 1) for value in found[:3])
    return f"{mean} [{low}, {high}]"


def plain(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash."""
    return MISSING if value is None else format(value, form)


def asked(gates: Sequence[Gate]) -> str:
    """How often they were right, or a dash."""
    return str(Asked.of(gates)) if gates else MISSING


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
        "rank binds: gate by four seeds": MISSING if gate is None else str(gate),
        "rank binds: truth by all": MISSING if gate is None else gate.truth,
        "gate by every 4 of the seeds": asked(m.gates(4, unseen=False)),
        "gate by every 4, truth by those it has not seen": asked(m.gates(4, unseen=True)),
        "gate by every 3, truth by those it has not seen": asked(m.gates(3, unseen=True)),
        "gate by every 2, truth by those it has not seen": asked(m.gates(2, unseen=True)),
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
