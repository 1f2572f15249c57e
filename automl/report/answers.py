"""Answers computed from a study's frame: what was spent and saved, which rate for which rank, targets at equal size."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from automl import ranking
from automl.metric import as_loss
from automl.ranking import Point, pareto_front, point
from automl.report.frames import StudyFrame
from automl.results.early_ends import ended_themselves
from automl.storage.trials import TrialRow
from automl.trial import TrialState

LINES = 60
"""Most lines of one kind in a chart: more would hide each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Sums over some trials: optimizer steps, training seconds, non-padding training tokens, rows trained on."""

    trials: int
    steps: int
    seconds: float
    tokens: int
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What was spent, by state; what it would have been without pruning; and the difference.

    saved: steps are counted; seconds and tokens are estimated from each trial's own pace. share: saved part of the
    steps, in [0, 1]; None if nothing has ended.
    """

    by_state: Mapping[str, Cost]
    total: Cost
    saved: Cost
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Trials that belong together. label: what they share. best: the best complete one; early: the best at the common
    step, pruned trials included."""

    label: str
    trials: tuple[TrialRow, ...]
    complete: int
    best: TrialRow | None
    early: TrialRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Trials with about the same number of trainable parameters (within a factor of two), by target set."""

    low: int
    high: int
    targets: Mapping[str, Group]

    @property
    def decided(self) -> bool:
        """Whether at least two target sets have a complete trial here."""
        return sum(group.best is not None for group in self.targets.values()) >= 2


def spending(frame: StudyFrame) -> Spending:
    """Where the training went. Trials that failed or diverged count as spent, not as saved."""
    groups = {str(state): [t for t in frame.trials if t.state == state] for state in TrialState}
    by_state = {name: _cost(trials) for name, trials in groups.items() if trials}
    pruned = [t for t in frame.trials if t.state == TrialState.PRUNED and t.stop_reason in ("pruned", None)]
    pruned += ended_themselves(frame.trials)
    saved = _saved(pruned, frame.own_steps)
    total = _cost(frame.trials)
    full = total.steps + saved.steps
    return Spending(by_state=by_state, total=total, saved=saved, share=saved.steps / full if full else None)


def value_at(trial: TrialRow, step: int) -> float | None:
    """The objective at this step, None if it was not measured there."""
    return next((point.value for point in trial.curve if point.step == step), None)


def rates_by_rank(frame: StudyFrame) -> tuple[Group, ...]:
    """Trials by rank (powers of two from six ranks on), lowest first; empty if ranks or rates were not searched."""
    having = [trial for trial in frame.trials if {"rank", "learning_rate"} <= trial.params.keys()]
    ranks = sorted({int(trial.params["rank"]) for trial in having})
    buckets: dict[tuple[int, int], list[TrialRow]] = defaultdict(list)
    for trial in having:
        buckets[_rank_bucket(int(trial.params["rank"]), exact=len(ranks) <= 5)].append(trial)
    return tuple(
        _group(frame, f"{low}" if low == high else f"{low} to {high}", trials)
        for (low, high), trials in sorted(buckets.items())
    )


def sizes_by_target(frame: StudyFrame) -> tuple[SizeClass, ...]:
    """Trials by size and target set, smallest first; empty if only one target set was tried."""
    sized = [t for t in frame.trials if t.trainable_params and "target" in t.params]
    if len({trial.params["target"] for trial in sized}) < 2:
        return ()
    classes: dict[int, dict[str, list[TrialRow]]] = defaultdict(lambda: defaultdict(list))
    for trial in sized:
        classes[int(math.log2(trial.trainable_params or 1))][str(trial.params["target"])].append(trial)
    return tuple(
        SizeClass(
            low=2**power,
            high=2 ** (power + 1),
            targets={target: _group(frame, target, trials) for target, trials in sorted(by_target.items())},
        )
        for power, by_target in sorted(classes.items())
    )


def pareto(frame: StudyFrame) -> tuple[TrialRow, ...]:
    """Complete trials that no other beats with as small a size (`StudyFrame.size`), smallest first."""
    sized = {trial.number: (trial, size) for trial in frame.complete if (size := frame.size(trial)) is not None}
    points = (Point(as_loss(trial.value or 0.0, frame.direction), size, trial.number) for trial, size in sized.values())
    return tuple(sized[point.trial][0] for point in pareto_front(points))


def forgetting_front(frame: StudyFrame) -> tuple[TrialRow, ...]:
    """Complete trials that no other beats and that forgot as little, those that forgot least first."""
    known = {trial.number: trial for trial in frame.complete if trial.forgetting is not None}
    points = (
        Point(as_loss(trial.value or 0.0, frame.direction), trial.forgetting or 0.0, trial.number)
        for trial in known.values()
    )
    return tuple(known[point.trial] for point in pareto_front(points))


def failures(frame: StudyFrame) -> Mapping[str, tuple[TrialRow, ...]]:
    """Trials that went wrong (failed, diverged, out of memory), by reason, most frequent first."""
    wrong = [t for t in frame.trials if t.state == TrialState.FAIL or t.stop_reason in ("diverged", "oom")]
    counted = Counter(trial.stop_reason or "unknown" for trial in wrong)
    return {
        reason: tuple(trial for trial in wrong if (trial.stop_reason or "unknown") == reason)
        for reason, _ in counted.most_common()
    }


def _cost(trials: Iterable[TrialRow]) -> Cost:
    listed = list(trials)
    return Cost(
        trials=len(listed),
        steps=sum(trial.steps for trial in listed),
        seconds=sum(trial.seconds for trial in listed),
        tokens=sum(trial.tokens for trial in listed),
        examples=sum(trial.examples for trial in listed),
    )


def _saved(pruned: Sequence[TrialRow], full: Mapping[int, int]) -> Cost:
    steps = seconds = tokens = examples = 0.0
    for trial in pruned:
        rest = max(0, full[trial.number] - trial.steps)
        steps += rest
        if trial.steps:
            seconds += rest * trial.seconds / trial.steps
            tokens += rest * trial.tokens / trial.steps
            examples += rest * trial.examples / trial.steps
    return Cost(trials=len(pruned), steps=int(steps), seconds=seconds, tokens=int(tokens), examples=int(examples))


def _group(frame: StudyFrame, label: str, trials: Sequence[TrialRow]) -> Group:
    complete = ranking.complete(trials, frame.direction)
    step = frame.parameter_importance.step
    reached = {t.number: (value, t) for t in trials if (value := value_at(t, step)) is not None}
    early = min((point(number, [value], frame.direction) for number, (value, _) in reached.items()), default=None)
    return Group(
        label=label,
        trials=tuple(trials),
        complete=len(complete),
        best=complete[0] if complete else None,
        early=None if early is None else reached[early.trial][1],
    )


def _rank_bucket(rank: int, *, exact: bool) -> tuple[int, int]:
    low = 2 ** int(math.log2(rank))
    return (rank, rank) if exact else (low, 2 * low - 1)
