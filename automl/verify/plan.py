"""What a verification will do, as values: arms, comparisons named beforehand, seeds, and what it all stands on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from automl.lora import Hyperparameters
from automl.metric import METRICS, Direction
from automl.space.length import own_step
from automl.space.spec import SearchSettings
from automl.storage.verification import ScoredSplit
from automl.study.seeding import derive_seed
from automl.trial import Cut, Examination, Scalar, TrialSpec

ArmKind = Literal[
    "finalist",
    "method",
    "default",
    "smallest",
    "suggested",
    "uniform",
    "random",
    "equal",
    "lower",
    "squeezed",
    "even-cut",
]
CUT_KINDS: tuple[ArmKind, ...] = ("squeezed", "even-cut")
PATTERN_KINDS: tuple[ArmKind, ...] = ("suggested", "uniform", "random")

_CALLED: Mapping[ArmKind, str] = {
    "default": "the default configuration",
    "suggested": "the suggested ranks",
    "uniform": "even ranks",
    "random": "random ranks",
    "equal": "LoRA with as many parameters",
    "squeezed": "the winner's adapter cut globally",
    "even-cut": "the winner's adapter cut evenly",
}

LOOK = 4
"""Seeds after which a comparison may be found to show no clear difference before all seeds are spent."""

LEAST_PATTERN_SEEDS = 8
"""Seeds below which a suggested rank pattern is not judged: fewer do not see the differences that occur."""

GRID = (0.5, 1.0, 2.0)
"""Learning rates tried, as multiples of the base configuration's, where a comparison would be unfair at one rate."""

TUNING_SEEDS = 2
"""Most seeds on which a learning rate is chosen, by validation rows; they are never scored on test rows."""

_CHECKPOINTS = 9
"""Times a training is saved and heard of before its end, at most: so much of it is lost with a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A configuration under verification. name: unique in the plan, at most 64 characters.

    trial: the one of the search that it comes from. params: as the search gave them, for people. hyper: all of it; its
    learning rate is the first choice. learning_rates: candidates, one of which is chosen on validation rows if there
    are several. cut: what it is of the winner's adapter; such an arm is not trained. steps: after which training ends,
    where the trial that it comes from is worth an earlier checkpoint than its last one; the schedule goes on to the
    plan's.
    """

    name: str
    title: str
    kind: ArmKind
    trial: int | None
    params: Mapping[str, Scalar]
    hyper: Hyperparameters
    trainable_params: int
    learning_rates: tuple[float, ...]
    cut: Cut | None = None
    steps: int | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether its learning rate is chosen in the verification."""
        return len(self.learning_rates) > 1

    @property
    def called(self) -> str:
        """What it is called within a sentence: `trial 3`, `the default configuration`."""
        if self.kind == "lower":
            return f"rank {self.hyper.rank} at its own rate"
        if self.kind == "method":
            return f"{self.hyper.method} (trial {self.trial})"
        return _CALLED.get(self.kind, f"trial {self.trial}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`arm` held against `against`, at a confidence level for this comparison alone."""

    arm: str
    against: str
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a verification's scores depend on, and the rules by which they will be read.

    margin: differences below it do not matter in practice. An arm that is shown to lose less is not worse.
    seeds: planned, in this order.
    tuning_seeds: for learning rates.
    winner_value: validation value of the search's best trial.
    test: fingerprint of the test rows, test_rows their number.
    steps: of a training; step_rows: of batches of so many rows, None: of whatever batches an arm has.
    looks: seeds after which a verification with a budget is looked at and may end; empty without a budget.
    budget_seconds: training time after whose end no look is begun.
    majority: metrics of always saying the most frequent class of the test rows, empty for text tasks.
    """

    study: str
    metric: str
    steps: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    margin: float
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    winner_value: float
    model: str
    data: str
    test: str
    test_rows: int
    precision: str
    majority: Mapping[str, float]
    looks: tuple[int, ...] = ()
    budget_seconds: float | None = None
    step_rows: int | None = None

    @property
    def direction(self) -> Direction:
        """The metric's direction."""
        return METRICS[self.metric].direction

    @property
    def stages(self) -> tuple[int, ...]:
        """Seeds that every open comparison has after each stage, the last one all."""
        return self.looks or tuple(sorted({min(LOOK, len(self.seeds)), len(self.seeds)}))

    @property
    def claims(self) -> int:
        """Times a difference may be claimed, which share the chance of error."""
        return max(1, len(self.looks))

    @property
    def grain(self) -> float:
        """Step in which scores come."""
        return row_step(self.metric, self.test_rows)

    @property
    def methods(self) -> list[Arm]:
        """The best trial of each method, best first; none where the search had one method."""
        return [arm for arm in self.arms if arm.kind == "method"]

    def steps_of(self, arm: str) -> int:
        """Optimizer steps of a training of the arm of that name."""
        return self.arm(arm).steps or self.schedule_of(arm)

    def schedule_of(self, arm: str) -> int:
        """Steps of the schedule of that arm: of as many rows as every other's, where the study is one of rows."""
        search = SearchSettings(steps=self.steps, step_rows=self.step_rows)
        return own_step(search, self.steps, self.arm(arm).hyper.batch_size)

    def tuned_on(self, arm: Arm) -> tuple[int, ...]:
        """Seeds on which its learning rate is chosen: one for methods, which are many, all for others."""
        return self.tuning_seeds[:1] if arm.kind == "method" else self.tuning_seeds

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def trained(self) -> list[Arm]:
        """The arms that are trained; those of cuts are not."""
        return [arm for arm in self.arms if arm.cut is None]

    @property
    def winner(self) -> Arm:
        """The best trial of the search: the first finalist."""
        return self.arms[0]

    def as_begun(self, recorded: Mapping[str, Any]) -> Plan:
        """The plan with lower ranks at the alphas and learning rates that a recorded one has, whoever chose them."""
        lower = {each["name"]: each for each in recorded["arms"] if each["kind"] == "lower"}
        return replace(self, arms=tuple(_as_begun(arm, lower.get(arm.name)) for arm in self.arms))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `automl_verifications.plan` keeps them. Two plans with equal ones are the same plan."""
        plain = asdict(self)
        for arm, document in zip(self.arms, plain["arms"], strict=True):
            document["hyper"] = {**arm.hyper.as_dict(), "rank_pattern": arm.hyper.ranks}
            if arm.cut is None:  # as versions without cuts have recorded it
                del document["cut"]
            if arm.steps is None:  # as versions that knew last checkpoints only have recorded it
                del document["steps"]
        if self.budget_seconds is None:  # as versions without budgets have recorded it
            del plain["looks"], plain["budget_seconds"]
        if self.step_rows is None:  # as versions before it have recorded it
            del plain["step_rows"]
        listed: dict[str, Any] = _listed(plain)
        return listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One arm trained once. split: the rows it is scored on after its last step."""

    arm: str
    seed: int
    learning_rate: float
    split: ScoredSplit

    @property
    def key(self) -> tuple[str, int, float, ScoredSplit]:
        """What names its scores."""
        return self.arm, self.seed, self.learning_rate, self.split


def _as_begun(arm: Arm, recorded: Mapping[str, Any] | None) -> Arm:
    if recorded is None:
        return arm
    alpha, rate = (recorded["hyper"][name] for name in ("alpha", "learning_rate"))
    hyper = replace(arm.hyper, alpha=alpha, learning_rate=rate)
    return replace(arm, hyper=hyper, learning_rates=tuple(recorded["learning_rates"]))


def fresh_seeds(study_seed: int, number: int, count: int, used: Iterable[int]) -> tuple[int, ...]:
    """Seeds of verification `number`, a function of these alone; none is among `used`, nor twice among themselves."""
    taken = set(used)
    found: list[int] = []
    for seed in _stream(study_seed, number):
        if len(found) == count:
            break
        if seed not in taken:
            taken.add(seed)
            found.append(seed)
    return tuple(found)


def all_trainings(plan: Plan) -> list[Training]:
    """Every training that the plan may come to, in a fixed order; their places are their trial numbers."""
    tuning = [
        Training(arm=arm.name, seed=seed, learning_rate=rate, split="validation")
        for seed in plan.tuning_seeds
        for arm in plan.arms
        if arm.is_tuned and seed in plan.tuned_on(arm)
        for rate in arm.learning_rates
    ]
    scored = [
        Training(arm=arm.name, seed=seed, learning_rate=rate, split="test")
        for seed in plan.seeds
        for arm in plan.trained
        for rate in arm.learning_rates
    ]
    return tuning + scored


def trial_spec(plan: Plan, training: Training, number: int) -> TrialSpec:
    """What the trainer is told. All arms of a seed start from the same draws and see the same batches.

    Measured once, after the last step: nothing about the test rows can reach the training. On the way it is saved
    _CHECKPOINTS times.
    """
    arm, steps = plan.arm(training.arm), plan.schedule_of(training.arm)
    return TrialSpec(
        number=number,
        params=arm.params,
        hyper=replace(arm.hyper, learning_rate=training.learning_rate),
        seed=training.seed,
        data_seed=derive_seed("verification-data", training.seed),
        steps=steps,
        evaluate_every=steps,
        checkpoint_every=math.ceil(steps / (_CHECKPOINTS + 1)),
        examination=_examination(plan, training),
        stop_after=arm.steps or 0,
    )


def _examination(plan: Plan, training: Training) -> Examination | None:
    """What is seen of a training scored on test rows: each row, of the winner its cuts, of a method its memory."""
    if training.split != "test":
        return None
    memory = plan.arm(training.arm).kind == "method" and training.seed == plan.seeds[0]
    if training.arm != plan.winner.name:
        return Examination("test", by_row=True, memory=memory)
    cuts = tuple(arm.cut for arm in plan.arms if arm.cut is not None)
    return Examination("test", cuts=cuts, by_row=True, on_validation=True, memory=memory)


def row_step(metric: str, rows: int) -> float:
    """Step in which scores come: one row's share of the metric's range; 0 for one without an upper end."""
    low, high = METRICS[metric].low, METRICS[metric].high
    return (high - low) / rows if METRICS[metric].is_bounded else 0.0


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over tokenised rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(sorted((name, value) for name, value in row.items())).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _stream(study_seed: int, number: int) -> Iterator[int]:
    index = 0
    while True:
        yield derive_seed("verification", study_seed, number, index)
        index += 1


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {name: _listed(item) for name, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
