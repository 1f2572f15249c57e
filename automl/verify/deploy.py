"""Which adapter to deploy: the winner's whole, the winner's cut to its knee, or one trained small.

A cut is never advised over an adapter trained at its size that is as good: cutting saves no training that was not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from automl.metric import METRICS
from automl.verify.plan import Arm, Plan
from automl.verify.protocol import Scores, mean_score, values
from automl.verify.recommendation import Candidate, Recommendation, held_against
from automl.verify.statistics import in_percent


def deployment(plan: Plan, scores: Scores, recommended: Recommendation | None) -> dict[str, Any] | None:
    """The result's `deploy`: the arm and why, in a sentence; None if nothing was cut."""
    cut = next((arm for arm in plan.arms if arm.kind == "squeezed" and len(values(plan, scores, arm)) >= 2), None)
    if cut is None or recommended is None:
        return None
    level = next(each.level for each in plan.comparisons if (each.arm, each.against) == (cut.name, plan.winner.name))
    held = held_against(plan, scores, cut, plan.winner, level)
    small = _trained_small(plan, scores, cut)
    choice = _choice(plan, scores, recommended, held, small)
    return {"arm": choice.name, "text": "; ".join(_clauses(plan, scores, choice, held, small))}


def _trained_small(plan: Plan, scores: Scores, cut: Arm) -> Arm | None:
    """The best of the lower ranks that are no larger than the cut, or else the smallest; None if none was trained."""
    lower = [arm for arm in plan.arms if arm.kind == "lower" and values(plan, scores, arm)]
    fitting = [arm for arm in lower if arm.hyper.rank <= cut.hyper.rank]
    loss = METRICS[plan.metric].loss
    if fitting:
        return min(fitting, key=lambda arm: loss(mean_score(plan, scores, arm)))
    return min(lower, key=lambda arm: arm.trainable_params, default=None)


def _choice(plan: Plan, scores: Scores, recommended: Recommendation, held: Candidate, small: Arm | None) -> Arm:
    cut, taken = held.arm, recommended.arm
    if taken.trainable_params <= cut.trainable_params or held.standing != "not worse" or taken is not plan.winner:
        return taken
    gain = METRICS[plan.metric].gain
    if small is not None and gain(mean_score(plan, scores, small), over=mean_score(plan, scores, cut)) >= 0.0:
        return taken
    return cut


def _clauses(plan: Plan, scores: Scores, choice: Arm, held: Candidate, small: Arm | None) -> Iterator[str]:
    cut, winner = held.arm, plan.winner

    def told(arm: Arm) -> str:
        return f"{arm.trainable_params:,} parameters, {plan.metric} {mean_score(plan, scores, arm):.4f}"

    if choice.kind == "lower":
        yield f"one trained at rank {choice.hyper.rank}"
    elif choice is cut:
        yield "the winner's adapter, cut globally"
    else:
        yield f"{choice.called} as it is"
    yield f"{winner.called} whole has {told(winner)}"
    yield (
        f"cut globally {told(cut)}, {_standing(plan, held)} ({held.gain.mean:+.4f} [{held.gain.low:+.4f},"
        f" {held.gain.high:+.4f}] at {in_percent(held.level)})"
    )
    if small is None:
        yield "no adapter was trained at that size, which may be better (verify: {squeeze: all})"
    else:
        yield f"trained at rank {small.hyper.rank} {told(small)}"


def _standing(plan: Plan, held: Candidate) -> str:
    if held.standing == "worse":
        return "worse"
    return f"{'' if held.standing == 'not worse' else 'not shown to be '}less than {plan.margin:.3g} worse"
