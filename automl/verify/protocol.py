"""The rules of a verification: what is trained next, which learning rate is taken, what each comparison says.

Pure functions of the plan and the scores so far, so a verification that was killed goes on as if it had not been.
Order: learning rates on the tuning seeds; then all arms on the seeds of the first stage; then, on those of the others,
only the arms of comparisons that are not decided, as long as the budget lasts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from automl.metric import METRICS, as_loss
from automl.storage.verification import RowOutcomes, Score, ScoredSplit
from automl.verify.plan import Arm, Comparison, Plan, Training, all_trainings
from automl.verify.rows import of_rows, widened
from automl.verify.statistics import LEVEL, Estimate, Verdict, is_settled, paired, spread, t_quantile, verdict

DIVERGED = "diverged"
"""Metric that is stored, with the value 1, for a training whose loss was not finite."""
SECONDS = "seconds"
"""Metric under which the training time is stored."""
UNTRAINED = "untrained"
"""Arm under which the scores of the model without any training are stored."""

Key = tuple[str, int, float, ScoredSplit]


class Scores:
    """All metrics of all trainings and cuts so far, by what they are of.

    outcomes: what they were made of, where that is known. truth: classes or numbers of the test
    rows in the order of the outcomes.
    """

    def __init__(
        self, scores: Iterable[Score] = (), outcomes: Iterable[RowOutcomes] = (), truth: Sequence[float] = ()
    ) -> None:
        self.truth = tuple(truth)
        self._outcomes = {(each.arm, each.seed, each.learning_rate, each.split): each.outcomes for each in outcomes}
        self._metrics: dict[Key, dict[str, float]] = {}
        for score in scores:
            key = (score.arm, score.seed, score.learning_rate, score.split)
            self._metrics.setdefault(key, {})[score.metric] = score.value

    def add(self, training: Training, metrics: Mapping[str, float], outcomes: str = "") -> None:
        """Note what a training, or a cut, has scored, and what that was made of."""
        self._metrics[training.key] = dict(metrics)
        if outcomes:
            self._outcomes[training.key] = outcomes

    def outcomes(self, arm: str, seed: int, learning_rate: float) -> str:
        """What a test score was made of; empty if that is not known."""
        return self._outcomes.get((arm, seed, learning_rate, "test"), "")

    def has(self, training: Training) -> bool:
        """Whether the training was made."""
        return training.key in self._metrics

    def metrics(self, arm: str, seed: int, learning_rate: float, split: ScoredSplit) -> Mapping[str, float]:
        """All that a training has scored; empty if it was not made."""
        return self._metrics.get((arm, seed, learning_rate, split), {})

    def seconds(self, arm: str) -> float:
        """Training time of an arm so far, tuning included."""
        return math.fsum(found.get(SECONDS, 0.0) for (name, *_), found in self._metrics.items() if name == arm)

    def scored(self, arm: str, learning_rate: float, metric: str) -> list[float]:
        """This metric of all trainings of an arm that were scored on test rows, as far as they have it."""
        return [
            found[metric]
            for (name, _, rate, split), found in self._metrics.items()
            if (name, rate, split) == (arm, learning_rate, "test") and metric in found
        ]

    def seconds_of(self, seeds: Collection[int]) -> list[float]:
        """Training times of all that was trained with these seeds; 0 where it diverged."""
        trained = {key: found for key, found in self._metrics.items() if SECONDS in found or DIVERGED in found}
        return [found.get(SECONDS, 0.0) for (_, seed, *_), found in trained.items() if seed in seeds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison on the seeds that both arms were trained with. row_error: standard error over rows, 0: not known."""

    comparison: Comparison
    estimate: Estimate
    seeds: int
    wins: int
    verdict: Verdict
    row_error: float


def next_trainings(plan: Plan, scores: Scores) -> list[Training]:
    """What is to be trained now, seed by seed; empty when the verification is complete."""
    tuning = [each for each in all_trainings(plan) if each.split == "validation" and not scores.has(each)]
    if tuning:
        return tuning
    arms, begin = plan.trained, 0
    for end in plan.stages:
        if begin:
            arms = _open_arms(plan, scores, begin)
            if not _is_affordable(plan, scores, len(arms), begin, end):
                return []
        if missing := _missing(plan, scores, arms, plan.seeds[begin:end]):
            return missing
        begin = end
    return []


def chosen_rate(plan: Plan, scores: Scores, arm: Arm) -> float:
    """The candidate with the best mean on validation rows over the arm's tuning seeds; the lower one of equals.

    A rate with which a training diverged is taken only if all have. Of a cut the winner's.
    """
    if arm.cut is not None:
        return chosen_rate(plan, scores, plan.winner)
    if not arm.is_tuned:
        return arm.learning_rates[0]

    def cost(rate: float) -> tuple[int, float, float]:
        found = [scores.metrics(arm.name, seed, rate, "validation") for seed in plan.tuned_on(arm)]
        sound = [metrics[plan.metric] for metrics in found if plan.metric in metrics]
        loss = as_loss(math.fsum(sound) / len(sound), plan.direction) if sound else 0.0
        return len(found) - len(sound), loss, rate

    return min(arm.learning_rates, key=cost)


def values(plan: Plan, scores: Scores, arm: Arm, metric: str | None = None) -> dict[int, float]:
    """Test score of an arm by seed, in the order of the plan.

    A training that diverged counts as no training at all: it gets the score of the majority class (of the untrained
    model where there is no class), since that is what one would be left with.
    """
    name = metric or plan.metric
    rate = chosen_rate(plan, scores, arm)
    found: dict[int, float] = {}
    for seed in plan.seeds:
        metrics = scores.metrics(arm.name, seed, rate, "test")
        if arm.cut is not None and DIVERGED in (whole := scores.metrics(plan.winner.name, seed, rate, "test")):
            metrics = whole  # there was nothing to cut
        if metrics:
            found[seed] = metrics[name] if DIVERGED not in metrics else baseline(plan, scores)[name]
    return found


def validation_values(plan: Plan, scores: Scores) -> list[float]:
    """Values of the winner's fresh seeds on the validation rows; none if a seed has none."""
    seeds = values(plan, scores, plan.winner)
    rate = chosen_rate(plan, scores, plan.winner)
    found = [scores.metrics(plan.winner.name, seed, rate, "validation").get(plan.metric) for seed in seeds]
    told = [value for value in found if value is not None]
    return told if len(told) == len(found) else []


def mean_score(plan: Plan, scores: Scores, arm: Arm) -> float:
    """Mean test score of an arm over its seeds."""
    return _mean(list(values(plan, scores, arm).values()))


def baseline(plan: Plan, scores: Scores) -> Mapping[str, float]:
    """Metrics on the test rows without any training."""
    return plan.majority or scores.metrics(UNTRAINED, 0, 0.0, "test")


def compare(plan: Plan, scores: Scores, comparison: Comparison, *, seeds: int | None = None) -> Compared | None:
    """The comparison on the seeds that both arms have, at most `seeds` of them; None while there are fewer than 2."""
    ours, theirs = (values(plan, scores, plan.arm(name)) for name in (comparison.arm, comparison.against))
    shared = [seed for seed in plan.seeds if seed in ours and seed in theirs][:seeds]
    if len(shared) < 2:
        return None
    estimate, error = difference(plan, scores, comparison, shared)
    return Compared(
        comparison=comparison,
        estimate=estimate,
        seeds=len(shared),
        wins=sum(METRICS[plan.metric].gain(ours[seed], over=theirs[seed]) > 0.0 for seed in shared),
        verdict=verdict(estimate, plan.direction),
        row_error=error,
    )


def difference(plan: Plan, scores: Scores, pair: Comparison, seeds: Sequence[int]) -> tuple[Estimate, float]:
    """Mean of the paired differences over these seeds with its interval, and the standard error over rows.

    The interval is over seeds, and where it is known what was made of each row, over seeds and rows, which is wider.
    """
    arms = [plan.arm(name) for name in (pair.arm, pair.against)]
    ours, theirs = (values(plan, scores, arm) for arm in arms)
    estimate = paired([ours[seed] - theirs[seed] for seed in seeds], pair.level, grain=plan.grain)
    rates = [chosen_rate(plan, scores, arm) for arm in arms]
    told = tuple(
        (scores.outcomes(arms[0].name, seed, rates[0]), scores.outcomes(arms[1].name, seed, rates[1])) for seed in seeds
    )
    if not all(text for of_seed in told for text in of_seed):
        return estimate, 0.0
    rows = of_rows(told, plan.metric, scores.truth)
    return widened(estimate, rows.error, rows.parts, pair.level), rows.error


def beats_baseline(plan: Plan, scores: Scores) -> bool:
    """Whether any arm is beyond doubt better on the test rows than no training at all.

    Judged by accuracy where the task has it, whatever the objective: guessing at random beats the majority class in
    macro F1. The doubt covers the seeds and, for a metric that is a share of rows, that these rows are a sample.
    """
    without = baseline(plan, scores)
    metric = "accuracy" if "accuracy" in without and plan.metric != "loss" else plan.metric
    return any(
        METRICS[metric].gain(_mean(found), over=without[metric]) > _doubt(plan, metric, found)
        for arm in plan.trained
        if len(found := list(values(plan, scores, arm, metric).values())) >= 2
    )


def _doubt(plan: Plan, metric: str, found: Sequence[float]) -> float:
    """By how much the mean could be too high by chance, one-sided and for all arms together."""
    sure = 1.0 - (1.0 - LEVEL) / (len(plan.trained) * plan.claims)
    doubt = t_quantile(sure, len(found) - 1) * spread(found) / math.sqrt(len(found))
    if metric not in ("accuracy", "exact_match"):
        return doubt
    share = min(max(_mean(found), 0.0), 1.0)
    sampling = NormalDist().inv_cdf(sure) * math.sqrt(share * (1.0 - share) / plan.test_rows)
    return math.hypot(doubt, sampling)


def _mean(found: Sequence[float]) -> float:
    return math.fsum(found) / len(found)


def _open_arms(plan: Plan, scores: Scores, seeds: int) -> list[Arm]:
    """Arms of the comparisons that so many seeds have not decided."""
    open_ones = [each for each in plan.comparisons if not _is_decided(plan, scores, each, seeds)]
    names = {name for each in open_ones for name in (each.arm, each.against)}
    if any(plan.arm(name).cut is not None for name in names):
        names.add(plan.winner.name)  # whose adapters are cut
    return [arm for arm in plan.trained if arm.name in names]


def _is_decided(plan: Plan, scores: Scores, comparison: Comparison, seeds: int) -> bool:
    """Whether more seeds are not needed. Without looks, a difference may be claimed after all planned seeds only."""
    early = compare(plan, scores, comparison, seeds=seeds)
    if early is None:
        return False
    may_claim = bool(plan.looks) and early.verdict != "no clear difference"
    return may_claim or is_settled(early.estimate, plan.margin)


def _is_affordable(plan: Plan, scores: Scores, arms: int, begin: int, end: int) -> bool:
    """Whether a stage ends within the budget, if its trainings take as long as those of the stages before.

    Only whole stages count, so a verification that was killed within one decides the same.
    """
    if plan.budget_seconds is None:
        return True
    spent = scores.seconds_of({*plan.tuning_seeds, *plan.seeds[:begin]})
    return math.fsum(spent) * (1.0 + arms * (end - begin) / len(spent)) <= plan.budget_seconds


def _missing(plan: Plan, scores: Scores, arms: Iterable[Arm], seeds: Sequence[int]) -> list[Training]:
    rates = {arm.name: chosen_rate(plan, scores, arm) for arm in arms}
    wanted = (
        Training(arm=name, seed=seed, learning_rate=rate, split="test")
        for seed in seeds
        for name, rate in rates.items()
    )
    return [training for training in wanted if not scores.has(training)]
