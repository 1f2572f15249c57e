"""From scores to what may be said: the document that `automl_verifications.result` keeps and every report reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from automl.metric import METRICS
from automl.results.rank_gate import RankGate
from automl.trial import FORGETTING
from automl.verify.arms import RANDOM, SUGGESTED, UNIFORM
from automl.verify.deploy import deployment
from automl.verify.lower import rank_answer
from automl.verify.methods import methods_answer
from automl.verify.plan import Arm, Plan
from automl.verify.protocol import (
    Compared,
    Scores,
    baseline,
    beats_baseline,
    chosen_rate,
    compare,
    mean_score,
    validation_values,
    values,
)
from automl.verify.recommendation import as_document, recommend
from automl.verify.statistics import LEVEL, in_percent, paired, spread

NOT_RUN, PASSED, NO_GAIN, WORSE = "not_run", "passed", "no_gain", "worse"


def conclude(plan: Plan, scores: Scores) -> dict[str, Any]:
    """The result of a verification whose trainings are all made; keys as in docs/verification.md."""
    found = [each for comparison in plan.comparisons if (each := compare(plan, scores, comparison)) is not None]
    above = beats_baseline(plan, scores)
    methods = methods_answer(plan, scores)
    suggestion = _suggestion(found)
    recommended = recommend(plan, scores, with_suggested=suggestion == PASSED) if above else None
    return {
        "metric": {"name": plan.metric, "direction": plan.direction},
        "majority": plan.majority.get(plan.metric),
        "beats_majority": above,
        "headline": _headline(plan, scores, found, above=above, methods=methods["text"] if methods else ""),
        "seeds": [seed for seed in plan.seeds if any(seed in values(plan, scores, arm) for arm in plan.arms)],
        "planned_seeds": len(plan.seeds),
        "arms": [_arm(plan, scores, arm) for arm in plan.arms if values(plan, scores, arm)],
        "comparisons": [_comparison(each) for each in found],
        "selection_optimism": _optimism(plan, scores),
        "recommendation": as_document(plan, scores, recommended),
        "deploy": deployment(plan, scores, recommended),
        "methods": methods,
        "suggestion": {"status": suggestion},
        "rank": _as_plain(rank_answer(plan, scores)) if above else None,
    }


def _as_plain(gate: RankGate | None) -> dict[str, Any] | None:
    return None if gate is None else gate.as_dict()


def _arm(plan: Plan, scores: Scores, arm: Arm) -> dict[str, Any]:
    found = values(plan, scores, arm)
    return {
        "name": arm.name,
        "title": arm.title,
        "kind": arm.kind,
        "trial": arm.trial,
        "params": dict(arm.params),
        "rank_pattern": arm.hyper.ranks,
        "trainable_params": arm.trainable_params,
        "learning_rates": list(arm.learning_rates),
        "learning_rate": chosen_rate(plan, scores, arm),
        "scores": {str(seed): value for seed, value in found.items()},
        "mean": mean_score(plan, scores, arm),
        "sd": spread(list(found.values())),
        "seconds": scores.seconds(arm.name),
        "forgetting": _forgetting(plan, scores, arm),
    }


def _forgetting(plan: Plan, scores: Scores, arm: Arm) -> dict[str, Any] | None:
    """What the arm has forgotten, with an interval over seeds; None if fewer than two of its trainings know."""
    rate = chosen_rate(plan, scores, arm)
    told = [scores.metrics(arm.name, seed, rate, "test").get(FORGETTING) for seed in plan.seeds]
    known = [value for value in told if value is not None]
    if len(known) < 2:
        return None
    estimate = paired(known)
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "level": LEVEL, "seeds": len(known)}


def _comparison(found: Compared) -> dict[str, Any]:
    return {
        "arm": found.comparison.arm,
        "against": found.comparison.against,
        "difference": found.estimate.mean,
        "low": found.estimate.low,
        "high": found.estimate.high,
        "level": found.comparison.level,
        "seeds": found.seeds,
        "wins": found.wins,
        "verdict": found.verdict,
        "detectable": found.estimate.detectable,
        "row_error": found.row_error or None,
    }


def _optimism(plan: Plan, scores: Scores) -> dict[str, Any]:
    """By how much the search's value flattered its winner: positive = it looked better than it is.

    Against fresh seeds on the same validation rows, with an interval over seeds; where these were not scored there (one
    diverged, or an older version trained them), against the test rows. step: to which they were trained, where the
    search chose the winner's checkpoint too: its value is the best of several evaluations, theirs are of that step.
    """
    verified, metric = mean_score(plan, scores, plan.winner), METRICS[plan.metric]
    found = {
        "trial": plan.winner.trial,
        "validation": plan.winner_value,
        "verified": verified,
        "optimism": metric.gain(plan.winner_value, over=verified),
        **({"step": plan.winner.steps} if plan.winner.steps is not None else {}),
    }
    fresh = validation_values(plan, scores)
    if len(fresh) < 2:
        return found
    estimate = paired([metric.gain(plan.winner_value, over=value) for value in fresh])
    interval = {"low": estimate.low, "high": estimate.high, "level": LEVEL}
    return {**found, "fresh": math.fsum(fresh) / len(fresh), "optimism": estimate.mean, **interval}


def _suggestion(found: list[Compared]) -> str:
    """`passed` needs to be better than even ranks and than random ones; see importance.md on why both."""
    verdicts = {each.comparison.against: each.verdict for each in found if each.comparison.arm == SUGGESTED}
    if UNIFORM not in verdicts:
        return NOT_RUN
    if verdicts[UNIFORM] == "worse":
        return WORSE
    return PASSED if verdicts[UNIFORM] == verdicts.get(RANDOM) == "better" else NO_GAIN


def _headline(plan: Plan, scores: Scores, found: list[Compared], *, above: bool, methods: str) -> str:
    if not above:
        return _nothing_learnt(plan, scores)
    gate = rank_answer(plan, scores)
    said = [f"{_capital(gate.headline)}."] if gate is not None and gate.says_something else []
    said += filter(None, [_forgotten(plan, scores)])
    return " ".join([*_findings(plan, found), *filter(None, [methods]), *said]) or _alone(plan, scores)


def _forgotten(plan: Plan, scores: Scores) -> str:
    """What the winner has forgotten, as a sentence; empty if that is not known."""
    found = _forgetting(plan, scores, plan.winner)
    if found is None:
        return ""
    interval = f"[{found['low']:+.4f}, {found['high']:+.4f}] at {in_percent(LEVEL)}"
    return f"{_capital(plan.winner.called)} forgets {found['mean']:+.4f} {interval} over {found['seeds']} seeds."


def _nothing_learnt(plan: Plan, scores: Scores) -> str:
    what = "the majority class" if plan.majority else "the untrained model"
    without = baseline(plan, scores)[plan.metric]
    best = min(plan.trained, key=lambda arm: METRICS[plan.metric].loss(mean_score(plan, scores, arm)))
    return (
        f"No configuration beats {what}: {plan.metric} {mean_score(plan, scores, best):.4f} at best, {without:.4f}"
        " without training."
    )


def _findings(plan: Plan, found: list[Compared]) -> Iterator[str]:
    """A sentence for each comparison, the one with the default first; those of methods are told together."""
    of_others = [each for each in found if not _is_of_methods(plan, each)]
    for each in sorted(of_others, key=lambda each: plan.arm(each.comparison.against).kind != "default"):
        arm, against = (plan.arm(name) for name in (each.comparison.arm, each.comparison.against))
        yield f"{_capital(arm.called)} against {against.called}: {in_words(plan, each)}."


def _is_of_methods(plan: Plan, found: Compared) -> bool:
    return all(plan.arm(name).kind == "method" for name in (found.comparison.arm, found.comparison.against))


def in_words(plan: Plan, found: Compared) -> str:
    """`better, accuracy +0.0210 [+0.0100, +0.0320] at 98 %, ahead in 8 of 8 seeds`; without one: what had been seen."""
    estimate = found.estimate
    text = (
        f"{found.verdict}, {plan.metric} {estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"
        f" at {in_percent(found.comparison.level)}, ahead in {found.wins} of {found.seeds} seeds"
    )
    if found.verdict == "no clear difference":
        text += f" (could have seen a difference of {estimate.detectable:.4f})"
    return text


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _alone(plan: Plan, scores: Scores) -> str:
    mean = mean_score(plan, scores, plan.winner)
    return f"{_capital(plan.winner.called)} has {plan.metric} {mean:.4f} on the test rows."
