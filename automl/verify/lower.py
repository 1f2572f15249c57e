"""Does the rank bind: what a verification has found of the ranks below the winner's, each at its own learning rate."""

from __future__ import annotations

from automl.results.rank_gate import Lean, RankGate, told_of
from automl.verify.plan import Plan
from automl.verify.protocol import Scores, chosen_rate, values
from automl.verify.recommendation import Candidate, held_against, needed
from automl.verify.statistics import in_percent


def rank_answer(plan: Plan, scores: Scores) -> RankGate | None:
    """The answer of the arms of lower ranks: the lowest one that is not worse counts; None if there are none.

    Where nothing is proven of the highest, the lowest one that is likely not worse is told of, or else the highest.
    """
    found = _held(plan, scores)
    if not found:
        return None
    passed = next((each for each in found if each.standing == "not worse"), None)
    told = passed or found[-1]
    if told.standing == "undecided":
        undecided = [each for each in found if each.standing == "undecided"]
        told = undecided[told_of([each.chance for each in undecided])]
    evidence = (
        f"rank {told.arm.hyper.rank} at rate {chosen_rate(plan, scores, told.arm):.2g} against {plan.winner.called} of"
        f" rank {plan.winner.hyper.rank}: {plan.metric} better by {told.gain.mean:+.4f} [{told.gain.low:+.4f},"
        f" {told.gain.high:+.4f}] at {in_percent(told.level)} on test rows, {told.seeds} seeds,"
        f" margin {plan.margin:.3g}"
    )
    if passed is not None:
        return RankGate(
            answer="does not bind",
            source="verification",
            evidence=evidence,
            rank=passed.arm.hyper.rank,
            learning_rate=chosen_rate(plan, scores, passed.arm),
            alpha=passed.arm.hyper.alpha,
        )
    if told.standing == "worse":
        return RankGate(answer="binds", source="verification", evidence=evidence)
    lean = Lean(
        probability=told.chance,
        rank=told.arm.hyper.rank,
        learning_rate=chosen_rate(plan, scores, told.arm),
        alpha=told.arm.hyper.alpha,
        seeds=told.seeds,
        seeds_to_decide=told.needed,
    )
    return RankGate(answer="not known", source="verification", evidence=f"{evidence}: {needed(told)}", lean=lean)


def _held(plan: Plan, scores: Scores) -> list[Candidate]:
    """Lower ranks against the winner, lowest first."""
    levels = {each.arm: each.level for each in plan.comparisons}
    lower = [arm for arm in plan.arms if arm.kind == "lower" and len(values(plan, scores, arm)) >= 2]
    return [held_against(plan, scores, arm, plan.winner, levels[arm.name]) for arm in lower]
