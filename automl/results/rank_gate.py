"""Does the rank bind: is a low rank, at a learning rate of its own, as good as a higher one? Reads only, no torch.

A verification answers it on fresh seeds and test rows. Before one, the search's own trials do, as far as their noise
allows: the best value of the low ranks against that of all at least twice as high, at a step that both have reached.
Where neither proves anything, which way the evidence leans is told, with its probability; that is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from automl import ranking
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.metric import METRICS, practical_margin, standard_error
from automl.results.curves import with_curves
from automl.results.recorded import GROUND, recorded_search, recorded_space
from automl.space.assemble import assemble
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.storage.trials import TrialRow, list_trials
from automl.storage.verification import latest

Side = Literal["does not bind", "binds"]
Answer = Literal["does not bind", "binds", "not known"]

FEWEST = 3
"""Trials that each side must have at the step that is compared."""

LEANS_FROM = 0.6
"""Probability from which evidence is said to lean to a side. Chosen before any was looked at."""

_ERROR = 0.05
"""Chance of a wrong answer if the noise is as stated, whichever of the bounds answers."""
_LEAST_SHARE = 0.5
"""Share of a full trial's steps: earlier values are not compared, as low ranks at high rates learn faster at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lean:
    """What is likely where nothing is proven: of a low rank at a learning rate of its own.

    probability: that it is not worse than the margin, given a flat prior. seeds: it rests on; None for a search's own
    trials. seeds_to_decide: that would likely prove an answer; None where that is not known or no number would.
    """

    probability: float
    rank: int
    learning_rate: float
    alpha: float
    seeds: int | None = None
    seeds_to_decide: int | None = None

    @property
    def towards(self) -> Side | None:
        """The side that has at least LEANS_FROM, if one has."""
        return leaning(self.probability)

    @property
    def in_words(self) -> str:
        """The side, how sure that is, and what to do meanwhile."""
        if self.towards is None:
            told = f"{self._told(self.probability)} that rank {self.rank} is not worse"
            return f"nothing leans either way ({told}{self._by})"
        if self.towards == "binds":
            return f"most likely rank binds ({self._told(1.0 - self.probability)}{self._by}): rank {self.rank} is worse"
        return (
            f"most likely rank does not bind ({self._told(self.probability)}{self._by}): train at rank {self.rank} with"
            f" rate {self.learning_rate:.2g}"
        )

    @staticmethod
    def _told(probability: float) -> str:
        return f"probability {told_chance(probability)}"

    @property
    def _by(self) -> str:
        if self.seeds is None:
            return " by the search's own trials"
        more = "" if self.seeds_to_decide is None else f"; about {self.seeds_to_decide} seeds would decide"
        return f" by {self.seeds} seeds{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGate:
    """The answer and what it rests on.

    rank, learning_rate, alpha: what to train with; None unless the rank does not bind; alpha is missing in older
    results too. lean: what is likely where the answer is not known, if anything was compared.
    """

    answer: Answer
    evidence: str
    source: Literal["search", "verification"] = "search"
    rank: int | None = None
    learning_rate: float | None = None
    alpha: float | None = None
    lean: Lean | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RankGate:
        """From `as_dict`; versions before it had no lean."""
        lean = {name: value for name, value in (plain.get("lean") or {}).items() if name != "towards"}
        return cls(**{**plain, "lean": Lean(**lean) if lean else None})

    @property
    def headline(self) -> str:
        """The answer in a clause."""
        if self.answer == "does not bind":
            return f"rank does not bind here; train at rank {self.rank} with rate {self.learning_rate:.2g}"
        if self.answer == "binds":
            return "rank binds here: lower ranks are worse"
        if self.lean is None:
            return "whether rank binds here is not known"
        if self.lean.towards is None:
            return f"whether rank binds here is not known, and {self.lean.in_words}"
        return f"not proven; {self.lean.in_words}"

    @property
    def says_something(self) -> bool:
        """Whether there is an answer, or a side that is more likely than not."""
        return self.answer != "not known" or (self.lean is not None and self.lean.towards is not None)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lean = None if self.lean is None else {"towards": self.lean.towards, **asdict(self.lean)}
        return {**asdict(self), "lean": lean}


def leaning(probability: float) -> Side | None:
    """What a probability that low ranks are not worse leans to; None near a half."""
    if probability >= LEANS_FROM:
        return "does not bind"
    return "binds" if probability <= 1.0 - LEANS_FROM else None


def told_of(probabilities: Sequence[float]) -> int:
    """Which of several low ranks, the lowest first: the lowest that is likely not worse, or else the highest."""
    likely = (place for place, each in enumerate(probabilities) if leaning(each) == "does not bind")
    return next(likely, len(probabilities) - 1)


def told_chance(probability: float) -> str:
    """For people: two digits, and never certain."""
    return f"{min(max(probability, 0.01), 0.99):.2f}"


class RankTrial(NamedTuple):
    """What is compared of a trial. curve: the metric by step."""

    number: int
    rank: int
    learning_rate: float
    alpha: float
    curve: Mapping[int, float]


def rank_gate(database: Database, spec: SweepSpec) -> RankGate | None:
    """The answer of the newest finished verification, or else of the trials; None for a table of curves."""
    store = database.store(spec.study)
    space = recorded_space(store, spec)
    if space.columns:
        return None
    verified = latest(database, spec.study, done=True)
    if verified is not None and verified.result is not None and (found := verified.result.get("rank")):
        return RankGate.from_dict(found)
    metric = spec.task.metric
    search = recorded_search(store, spec)
    listed = list_trials(database, spec.study)
    rows = with_curves(listed, store.measurements(), metric, search=search, space=space)
    hypers = {row.number: assemble(space, row.params) for row in rows}
    ground = store.last_event(GROUND) or {}
    return gate_of_trials(rows, hypers, metric=metric, steps=search.steps, rows_at=_RowsAt(spec, ground))


class _RowsAt:
    """Validation rows of the measurement at a step."""

    def __init__(self, spec: SweepSpec, ground: Mapping[str, Any]) -> None:
        known = [(ground.get("rows") or {}).get("validation"), spec.task.evaluate_rows]
        self._all = min((int(rows) for rows in known if rows), default=1)
        self._by_step = {int(step): int(used) for step, used in ground.get("evaluations") or ()}

    def __getitem__(self, step: int) -> int:
        return self._by_step.get(step, self._all)


def gate_of_trials(
    rows: Sequence[TrialRow],
    hypers: Mapping[int, Hyperparameters],
    *,
    metric: str,
    steps: int,
    rows_at: _RowsAt | Mapping[int, int],
) -> RankGate:
    """The answer of trials with their curves. Compared are LoRA trials of the target set that the best one has.

    hypers: by trial. steps: of a full trial. rows_at: evaluation rows by step.
    """
    having = [row for row in rows if row.curve and METHODS[hypers[row.number].method].takes_pattern]
    if not having:
        return _not_known("no LoRA trial has a value")
    best = ranking.ranked(having, METRICS[metric].direction)[0]
    target = hypers[best.number].target
    trials = [_of(row, hypers[row.number], steps) for row in having if hypers[row.number].target == target]
    found = list(_comparisons(trials, metric, steps, rows_at))
    if not found:
        ranks = sorted({trial.rank for trial in trials})
        tried = f"rank {ranks[0]} alone" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return _not_known(
            f"{tried} tried on {target}, with fewer than {FEWEST} trials of low ranks, or of ranks twice as high, that"
            " were trained half way"
        )
    doubt = NormalDist().inv_cdf(1.0 - _ERROR / len(found))
    passed = next((each for each in found if each.is_not_worse(doubt)), None)
    if passed is not None:
        return RankGate(
            answer="does not bind",
            evidence=passed.in_words(metric),
            rank=passed.low.rank,
            learning_rate=passed.low.learning_rate,
            alpha=passed.low.alpha,
        )
    highest = max(trial.rank for trial in trials)
    near = [each for each in found if 4 * each.bound >= highest] or found[-1:]  # a quarter of the highest, or half
    worse = next((each for each in near if each.is_worse(doubt) and each.has_high_rates), None)
    if worse is not None:
        return RankGate(answer="binds", evidence=worse.in_words(metric))
    return replace(_not_known(near[0].in_words(metric)), lean=near[0].lean)


class _Comparison(NamedTuple):
    """Best of the ranks up to `bound` against best of those at least twice as high, at one step.

    gain: of the low ones; error: its standard error. has_high_rates: whether enough low ranks were tried at the rate of
    the best high one or above, since low ranks want higher rates.
    """

    bound: int
    step: int
    low: RankTrial
    high: RankTrial
    lows: int
    highs: int
    gain: float
    error: float
    margin: float
    has_high_rates: bool

    def is_not_worse(self, doubt: float) -> bool:
        """Whether a loss of the margin is ruled out. doubt: in standard errors."""
        return self.gain - doubt * self.error > -self.margin

    def is_worse(self, doubt: float) -> bool:
        return self.gain + doubt * self.error < 0.0

    @property
    def lean(self) -> Lean | None:
        """None towards worse where low ranks were not tried at rates that might have shown them better."""
        if not self.error:
            return None
        probability = NormalDist().cdf((self.gain + self.margin) / self.error)
        if leaning(probability) == "binds" and not self.has_high_rates:
            return None
        low = self.low
        return Lean(probability=probability, rank=low.rank, learning_rate=low.learning_rate, alpha=low.alpha)

    def in_words(self, metric: str) -> str:
        low, high = self.low, self.high
        return (
            f"{metric} {low.curve[self.step]:.4f} at best of {self.lows} trials up to rank {self.bound}"
            f" (rank {low.rank}, rate {low.learning_rate:.2g}), {high.curve[self.step]:.4f} at best of {self.highs}"
            f" from rank {2 * self.bound} on (rank {high.rank}, rate {high.learning_rate:.2g}), at step {self.step};"
            f" standard error of the difference {self.error:.2g}"
        )


def _comparisons(
    trials: Sequence[RankTrial], metric: str, steps: int, rows_at: _RowsAt | Mapping[int, int]
) -> Iterator[_Comparison]:
    """Each power of two that has enough trials on both sides, the lowest first."""
    highest = max(trial.rank for trial in trials)
    for power in range(highest.bit_length()):
        bound = 2**power
        low = [trial for trial in trials if trial.rank <= bound]
        high = [trial for trial in trials if trial.rank >= 2 * bound]
        step = _common_step(low, high, least=_LEAST_SHARE * steps)
        if step is not None:
            yield _compared(bound, step, low, high, metric, rows_at[step])


def _common_step(low: Sequence[RankTrial], high: Sequence[RankTrial], *, least: float) -> int | None:
    """The last step that FEWEST trials of both sides have reached; None if it is below `least`."""
    every = {step for trial in (*low, *high) for step in trial.curve if step >= least}
    enough = (step for step in every if min(sum(step in t.curve for t in side) for side in (low, high)) >= FEWEST)
    return max(enough, default=None)


def _compared(
    bound: int, step: int, low: Sequence[RankTrial], high: Sequence[RankTrial], metric: str, rows: int
) -> _Comparison:
    low, high = ([trial for trial in side if step in trial.curve] for side in (low, high))
    ours, theirs = (min(side, key=lambda trial: METRICS[metric].loss(trial.curve[step])) for side in (low, high))
    values = ours.curve[step], theirs.curve[step]
    return _Comparison(
        bound=bound,
        step=step,
        low=ours,
        high=theirs,
        lows=len(low),
        highs=len(high),
        gain=METRICS[metric].gain(values[0], over=values[1]),
        error=math.hypot(*(standard_error(metric, value, rows) for value in values)),
        margin=practical_margin(metric, values[1]),
        has_high_rates=sum(trial.learning_rate >= theirs.learning_rate for trial in low) >= FEWEST - 1,
    )


def _of(row: TrialRow, hyper: Hyperparameters, steps: int) -> RankTrial:
    """A trial that is worth its best checkpoint has that value in the end, wherever it ended itself."""
    curve = {point.step: point.value for point in row.curve}
    if row.checkpoint is not None and row.value is not None:
        curve[steps] = row.value
    return RankTrial(row.number, hyper.rank, hyper.learning_rate, hyper.alpha, curve)


def _not_known(evidence: str) -> RankGate:
    return RankGate(answer="not known", evidence=evidence)
