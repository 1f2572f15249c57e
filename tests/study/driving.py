"""Drives a study without a trainer: curves are functions, workers are a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from automl.lora import Hyperparameters
from automl.space.constraints import parse_constraint
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSettings, SearchSpace, When
from automl.storage.sql import Database
from automl.study.study import Study
from automl.trial import Action, Decision, Measurement, TrialSpec

Curve = Callable[[TrialSpec, int], float]

SPACE = SearchSpace(
    parameters=(
        IntParameter(name="rank", low=2, high=32, log=True),
        FloatParameter(name="learning_rate", low=1e-4, high=1e-2, log=True),
        CategoricalParameter(name="target", choices=("qv", "all-linear")),
    )
)

CONDITIONAL = SearchSpace(
    parameters=(
        CategoricalParameter(name="target", choices=("qv", "mlp", "all-linear")),
        IntParameter(name="rank", low=1, high=64, log=True),
        FloatParameter(
            name="dropout", low=0.0, high=0.3, step=0.1, when=When(parameter="target", values=("mlp", "all-linear"))
        ),
        FloatParameter(name="learning_rate", low=1e-4, high=1e-2, log=True),
    )
)


def constrained(space: SearchSpace, *expressions: str) -> SearchSpace:
    return replace(space, constraints=tuple(parse_constraint(expression) for expression in expressions))


def derive(hyper: Hyperparameters) -> dict[str, float]:
    return {"trainable_params": float(hyper.rank * (1000 if hyper.target == "qv" else 4000))}


def settings(**changes: Any) -> SearchSettings:
    base: dict[str, Any] = {"trials": 8, "steps": 80, "evaluate_every": 10, "sampler": "random", "pruner": "peer"}
    return SearchSettings(**{**base, **changes})


def bowl(spec: TrialSpec, step: int) -> float:
    """A loss that falls towards a floor set by the learning rate; best at 2e-3."""
    return abs(math.log10(spec.hyper.learning_rate / 2e-3)) + math.exp(-step / 30)


def open_study(database: Database, **changes: Any) -> Study:
    """A new Study object on the database: a new driver, as far as the database can tell."""
    arguments: dict[str, Any] = {
        "name": "study",
        "storage": database.optuna_storage(),
        "store": database.store("study"),
        "space": SPACE,
        "settings": settings(),
        "metric": "loss",
        "run": 1,
        "derive": derive,
    }
    return Study(**{**arguments, **changes})


def measured(spec: TrialSpec, step: int, value: float, adapter: str | None = None, **metrics: float) -> Measurement:
    return Measurement(
        trial=spec.number,
        step=step,
        metrics={"loss": value, **metrics},
        seconds=step / 10,
        tokens=step * 100,
        adapter=adapter,
    )


@dataclass
class Loop:
    """Workers in lock-step: every round, every trial that runs trains to its next evaluation and they report together.

    done: how far each trial has been trained, as its slot file would know.
    """

    study: Study
    curve: Curve = bowl
    slots: int = 1
    adapters: bool = False
    done: dict[int, int] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    def run(self) -> None:
        while not self.study.finished:
            self.fill()
            self.report()
            self.decide()
        self.study.close()

    def fill(self) -> None:
        while len(self.study.live) < self.slots and (spec := self.study.next(worker=0)) is not None:
            self.done.setdefault(spec.number, 0)
            self.replay(spec)

    def replay(self, spec: TrialSpec) -> None:
        """What a worker sends when it reopens a slot file: all measurements so far."""
        steps = range(spec.evaluate_every, self.done[spec.number] + 1, spec.evaluate_every)
        if steps:
            self.study.report([self.measure(spec, step) for step in steps])
            self.decisions += self.study.decide([spec.number])

    def report(self) -> None:
        self.study.report([self.train(spec) for _, spec in sorted(self.study.live.items())])

    def decide(self) -> None:
        self.decisions += self.study.decide(sorted(self.study.live))

    def train(self, spec: TrialSpec) -> Measurement:
        self.done[spec.number] = min(spec.steps, self.done[spec.number] + spec.evaluate_every)
        return self.measure(spec, self.done[spec.number])

    def measure(self, spec: TrialSpec, step: int) -> Measurement:
        is_last = self.adapters and step == spec.steps
        return measured(spec, step, self.curve(spec, step), f"adapters/{spec.number}" if is_last else None)

    def ended(self, action: Action) -> list[int]:
        return [decision.trial for decision in self.decisions if decision.action is action]


def trials(study: Study) -> list[FrozenTrial]:
    return study.optuna.get_trials(deepcopy=False)


def numbers(study: Study, *states: TrialState) -> list[int]:
    return [trial.number for trial in trials(study) if trial.state in states]
