"""Which method: the best trial of each, held against LoRA, with what it costs, as the result's `methods` has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from automl.metric import METRICS
from automl.trial import PEAK_BYTES
from automl.verify.arms import reference_of
from automl.verify.plan import Arm, Plan
from automl.verify.protocol import SECONDS, Compared, Scores, chosen_rate, compare, mean_score, values
from automl.verify.statistics import in_percent, spread


def methods_answer(plan: Plan, scores: Scores) -> dict[str, Any] | None:
    """The result's `methods`: a row for each, best mean first; None if the search had one method."""
    reference = reference_of(plan.arms)
    if reference is None:
        return None
    arms = sorted((arm for arm in plan.methods if values(plan, scores, arm)), key=lambda arm: _loss(plan, scores, arm))
    compared = {arm.name: _against(plan, scores, arm, reference) for arm in arms}
    return {
        "reference": reference.hyper.method,
        "text": " ".join(_sentences(plan, scores, arms, compared, reference)),
        "rows": [_row(plan, scores, arm, compared[arm.name]) for arm in arms],
    }


def _loss(plan: Plan, scores: Scores, arm: Arm) -> float:
    return METRICS[plan.metric].loss(mean_score(plan, scores, arm))


def _against(plan: Plan, scores: Scores, arm: Arm, reference: Arm) -> Compared | None:
    pair = next((each for each in plan.comparisons if (each.arm, each.against) == (arm.name, reference.name)), None)
    return None if pair is None else compare(plan, scores, pair)


def _row(plan: Plan, scores: Scores, arm: Arm, found: Compared | None) -> dict[str, Any]:
    rate, scored = chosen_rate(plan, scores, arm), list(values(plan, scores, arm).values())
    seconds, peak = (scores.scored(arm.name, rate, name) for name in (SECONDS, PEAK_BYTES))
    return {
        "method": arm.hyper.method,
        "arm": arm.name,
        "trial": arm.trial,
        "trainable_params": arm.trainable_params,
        "peak_bytes": int(max(peak)) if peak else None,
        "seconds": math.fsum(seconds) / len(seconds) if seconds else None,
        "learning_rate": rate,
        "learning_rates": list(arm.learning_rates),
        "mean": mean_score(plan, scores, arm),
        "sd": spread(scored),
        "seeds": len(scored),
        **_difference(found),
    }


def _difference(found: Compared | None) -> dict[str, Any]:
    """How it stands against the reference; of that itself nothing."""
    names = ("difference", "low", "high", "level", "verdict")
    if found is None:
        return dict.fromkeys(names)
    mean, low, high, _ = found.estimate
    return dict(zip(names, (mean, low, high, found.comparison.level, found.verdict), strict=True))


def _sentences(
    plan: Plan, scores: Scores, arms: Sequence[Arm], compared: dict[str, Compared | None], reference: Arm
) -> Iterator[str]:
    """What may be said: the best mean, then who is better than the reference, worse, or not told from it."""
    yield (
        f"{arms[0].hyper.method} has the best mean, {plan.metric} {mean_score(plan, scores, arms[0]):.4f}"
        f" with {arms[0].trainable_params:,} trainable parameters."
    )
    told = [(arm, found) for arm in arms if (found := compared[arm.name]) is not None]
    if not told:
        return
    parts = []
    for verdict in ("better", "worse", "no clear difference"):
        names = [_told(arm, found) for arm, found in told if found.verdict == verdict]
        if names:
            parts.append(
                f"{verdict}{':' if verdict[0] == 'n' else ' are' if len(names) > 1 else ' is'} {', '.join(names)}"
            )
    level = in_percent(told[0][1].comparison.level)
    yield f"Against {reference.hyper.method}, each at a learning rate of its own: {'; '.join(parts)} (at {level} each)."


def _told(arm: Arm, found: Compared) -> str:
    estimate = found.estimate
    return f"{arm.hyper.method} ({estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}])"
