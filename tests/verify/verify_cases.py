"""What the tests of verification share: plans made by hand, and scores drawn from a formula instead of trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from automl.lora import Hyperparameters
from automl.space.spec import GROWTH
from automl.storage.verification import ScoredSplit
from automl.verify.arms import choose_comparisons
from automl.verify.plan import GRID, TUNING_SEEDS, Arm, ArmKind, Plan, Training, fresh_seeds
from automl.verify.protocol import SECONDS, Scores, next_trainings

Scorer = Callable[[Training], float]
MAJORITY = {"accuracy": 0.2, "macro_f1": 0.1, "mcc": 0.0, "loss": 1.6}


def arm(name: str, kind: ArmKind, *, params: int = 1000, rates: Sequence[float] = (1e-3,)) -> Arm:
    number = int(name.removeprefix("trial-")) if name.startswith("trial-") else None
    return Arm(
        name=name,
        title=name,
        kind=kind,
        trial=number,
        params={"rank": 4},
        hyper=Hyperparameters(rank=4, learning_rate=rates[0]),
        trainable_params=params,
        learning_rates=tuple(rates),
    )


def pattern_arms() -> list[Arm]:
    rates = [factor * 1e-3 for factor in GRID]
    kinds: tuple[ArmKind, ...] = ("suggested", "uniform", "random")
    return [replace(arm("trial-3", kind, rates=rates), name=kind) for kind in kinds]


def make_plan(
    arms: Sequence[Arm],
    *,
    seeds: int = 8,
    metric: str = "accuracy",
    margin: float = 0.01,
    number: int = 1,
    rows: int = 400,
    budget: float | None = None,
) -> Plan:
    looks = () if budget is None else tuple(seeds * times for times in GROWTH)
    seeds = looks[-1] if looks else seeds
    drawn = fresh_seeds(7, number, seeds + TUNING_SEEDS, ())
    return Plan(
        study="s",
        metric=metric,
        steps=20,
        seeds=drawn[:seeds],
        tuning_seeds=drawn[seeds:],
        margin=margin,
        arms=tuple(arms),
        comparisons=tuple(choose_comparisons(arms, claims=max(1, len(looks)))),
        winner_value=0.9,
        model="m",
        data="d",
        test="t",
        test_rows=rows,
        precision="fp32",
        majority=MAJORITY,
        looks=looks,
        budget_seconds=budget,
    )


def run(plan: Plan, scorer: Scorer) -> tuple[Scores, list[Training]]:
    """Follow the rules to the end with scores from a formula; returns them and what was trained, in order."""
    scores, made = Scores(), []
    while trainings := next_trainings(plan, scores):
        for training in trainings:
            scores.add(training, {plan.metric: scorer(training), SECONDS: 2.0})
            made.append(training)
    return scores, made


def noisy(effects: dict[str, float], *, sd: float, study: int, shared: float = 0.02, level: float = 0.8) -> Scorer:
    """A score of `level`, plus the arm's effect, plus noise that all arms of a seed share, plus noise of its own."""

    def score(training: Training) -> float:
        common = random.Random(f"{study}:{training.seed}").gauss(0.0, shared)
        own = random.Random(f"{study}:{training.key}").gauss(0.0, sd)
        return level + effects.get(training.arm, 0.0) + common + own

    return score


def splits(made: Sequence[Training]) -> set[ScoredSplit]:
    return {training.split for training in made}
