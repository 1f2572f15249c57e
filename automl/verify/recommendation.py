"""Which configuration to take: the one with the fewest parameters that is shown not to be worse than the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from automl.metric import METRICS
from automl.results.rank_gate import told_chance
from automl.verify.plan import PATTERN_KINDS, Arm, Comparison, Plan
from automl.verify.protocol import Scores, difference, mean_score, values
from automl.verify.rows import detectable_by, freedom_of
from automl.verify.statistics import (
    PROPOSED_SEEDS,
    Estimate,
    chance_above,
    in_percent,
    is_not_worse,
    joint_level,
    seeds_to_decide,
    spread,
)

Standing = Literal["not worse", "worse", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An arm held against the best one on the seeds that both have.

    gain: over the best one, negative where that is better, whatever the metric's direction.
    chance: probability that it is not worse than the margin, as far as these seeds and rows tell.
    needed: seeds that would decide; None if it is decided, or would take more than are proposed.
    rows: test rows that would decide with enough seeds, where seeds alone do not; None where that is not known.
    """

    arm: Arm
    gain: Estimate
    level: float
    seeds: int
    standing: Standing
    chance: float
    needed: int | None
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The recommended arm, the one with the best mean, and how every other candidate stands against that."""

    arm: Arm
    best: Arm
    others: tuple[Candidate, ...]

    @property
    def smaller(self) -> list[Candidate]:
        """Candidates with fewer parameters than the recommended arm."""
        return [each for each in self.others if each.arm.trainable_params < self.arm.trainable_params]


def recommend(plan: Plan, scores: Scores, *, with_suggested: bool) -> Recommendation:
    """The arm with the fewest parameters whose loss against the best one is shown to be below the plan's margin.

    Of equals the better one. Even and random ranks are there to be compared with, so they are no candidates; with
    with_suggested the suggested ones are.
    """
    kinds = {kind for kind in PATTERN_KINDS if kind != "suggested" or not with_suggested}
    arms = [arm for arm in plan.trained if arm.kind not in kinds]
    losses = {arm.name: METRICS[plan.metric].loss(mean_score(plan, scores, arm)) for arm in arms}
    best = min(arms, key=lambda arm: losses[arm.name])
    others = tuple(
        held_against(plan, scores, arm, best, _level(plan, arms, best, arm)) for arm in arms if arm is not best
    )
    good = [best, *(each.arm for each in others if each.standing == "not worse")]
    chosen = min(good, key=lambda arm: (arm.trainable_params, losses[arm.name]))
    return Recommendation(arm=chosen, best=best, others=others)


def _level(plan: Plan, arms: Sequence[Arm], best: Arm, arm: Arm) -> float:
    """Level of the interval for this arm: lower ranks are a question of their own, as in `choose_comparisons`."""
    together = [other for other in arms if other is not best and (other.kind == "lower") == (arm.kind == "lower")]
    return joint_level(len(together) * plan.claims)


def held_against(plan: Plan, scores: Scores, arm: Arm, best: Arm, level: float) -> Candidate:
    """How an arm stands against another on the seeds that both have, at least two."""
    ours, theirs = values(plan, scores, arm), values(plan, scores, best)
    shared = [seed for seed in ours if seed in theirs]
    gains = [METRICS[plan.metric].gain(ours[seed], over=theirs[seed]) for seed in shared]
    found, error = difference(plan, scores, Comparison(arm=arm.name, against=best.name, level=level), shared)
    gain = found.turned(plan.direction)
    standing: Standing = "worse" if gain.high < 0.0 else "undecided"
    if is_not_worse(gain, plan.margin):
        standing = "not worse"
    sd = max(spread(gains), plan.grain)
    needed, rows = None, None
    if standing == "undecided":
        by_rows = detectable_by(plan.test_rows, error, level)
        needed = seeds_to_decide(gain, sd, plan.margin, level, by_rows)
        if needed is None and seeds_to_decide(gain, sd, plan.margin, level) is not None:
            reached = max(gain.mean + plan.margin, -gain.mean)
            rows = math.ceil(2 * plan.test_rows * (by_rows / reached) ** 2)  # half of what is open is left to seeds
    errors = [(sd / math.sqrt(len(gains)), len(gains) - 1), (error, freedom_of(plan.test_rows))]
    return Candidate(
        arm=arm,
        gain=gain,
        level=level,
        seeds=len(gains),
        standing=standing,
        chance=chance_above(gain.mean + plan.margin, errors),
        needed=needed,
        rows=rows,
    )


def as_document(plan: Plan, scores: Scores, found: Recommendation | None) -> dict[str, Any]:
    """The result's `recommendation`; found: None if no arm has learnt anything."""
    if found is None:
        text = "none of these: look at the data, the learning-rate range and the number of steps first"
        return {"arm": None, "text": text, "best": None, "margin": plan.margin, "candidates": []}
    return {
        "arm": found.arm.name,
        "text": "; ".join(_clauses(plan, scores, found)),
        "best": found.best.name,
        "margin": plan.margin,
        "candidates": [
            {
                "arm": each.arm.name,
                "gain": each.gain.mean,
                "low": each.gain.low,
                "high": each.gain.high,
                "level": each.level,
                "seeds": each.seeds,
                "standing": each.standing,
                "probability": each.chance,
                "seeds_to_decide": each.needed,
            }
            for each in found.others
        ],
    }


def _clauses(plan: Plan, scores: Scores, found: Recommendation) -> Iterator[str]:
    yield (
        f"{found.arm.called}: {found.arm.trainable_params:,} trainable parameters,"
        f" {plan.metric} {mean_score(plan, scores, found.arm):.4f} on the test rows"
    )
    if not found.others:
        return
    if found.arm is found.best:
        yield "the best of all"
    else:
        yield f"less than {plan.margin:.3g} worse than the best, {found.best.called}, and smaller"
    yield from _of_smaller(plan, found.smaller)


def _of_smaller(plan: Plan, smaller: Sequence[Candidate]) -> Iterator[str]:
    undecided = [each for each in smaller if each.standing == "undecided"]
    if not undecided:
        yield "all that are smaller are worse" if smaller else "none is smaller"
    for each in undecided:
        yield (
            f"whether {each.arm.called} with {each.arm.trainable_params:,} is less than {plan.margin:.3g} worse is open"
            f" ({plan.metric} better by {each.gain.mean:+.4f} [{each.gain.low:+.4f}, {each.gain.high:+.4f}]"
            f" at {in_percent(each.level)}, probability {told_chance(each.chance)}): {needed(each)}"
        )


def needed(candidate: Candidate) -> str:
    """How many seeds would decide, in words."""
    if candidate.rows is not None:
        return f"these test rows are too few to decide; about {candidate.rows:,} would do, with more seeds"
    if candidate.needed is None:
        return f"more than {PROPOSED_SEEDS[-1]} seeds would be needed to decide"
    return f"about {candidate.needed} seeds would decide (it had {candidate.seeds})"
