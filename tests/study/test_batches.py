"""A study in rows, not steps: trials with other batch sizes are judged at equal shares, and go on where they were."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from optuna.trial import TrialState
from sqlalchemy import text

from automl.lora import Hyperparameters
from automl.space.spec import CategoricalParameter, FloatParameter, SearchSettings, SearchSpace
from automl.storage.invariants import check
from automl.storage.sql import Database
from automl.study.study import Study
from automl.trial import TrialSpec
from tests.study.driving import measured, open_study, settings, trials

SPACE = SearchSpace(
    parameters=(
        FloatParameter(name="learning_rate", low=1e-4, high=1e-2, log=True),
        CategoricalParameter(name="batch_size", choices=(4, 16, 64)),
    )
)
STEPS = (10, 20, 40, 80, 120)
EVALUATIONS = tuple((step, 32) for step in STEPS)
ROWS = settings(pruner="halving", trials=12, steps=120, step_rows=4, evaluations=EVALUATIONS, seed=5)


def loss(spec: TrialSpec, step: int) -> float:
    """Falls with the rows that were seen; larger batches see fewer steps, and learn as much from a row."""
    seen = step * spec.hyper.batch_size
    return abs(math.log10(spec.hyper.learning_rate / 2e-3)) + math.exp(-seen / 120) + spec.number / 1e6


@dataclass
class Batches:
    """Workers in lock-step, each trial by the measurements it was told of."""

    study: Study
    slots: int = 3
    done: dict[int, int] = field(default_factory=dict)
    specs: dict[int, TrialSpec] = field(default_factory=dict)

    def run(self, rounds: int | None = None) -> None:
        for _ in itertools.count() if rounds is None else range(rounds):
            if self.study.finished:
                self.study.close()
                return
            self._round()

    def _round(self) -> None:
        while len(self.study.live) < self.slots and (spec := self.study.next(worker=0)) is not None:
            self.specs[spec.number] = spec
            known = [step for step, _ in spec.evaluations if step <= self.done.get(spec.number, 0)]
            self.study.report([measured(spec, step, loss(spec, step)) for step in known])
        for number, spec in sorted(self.study.live.items()):
            due = min((step for step, _ in spec.evaluations if step > self.done.get(number, 0)), default=spec.steps)
            self.done[number] = due
            self.study.report([measured(spec, due, loss(spec, due))])
        self.study.decide(sorted(self.study.live))


def curves(study: Study) -> list[tuple[TrialState, dict[int, float]]]:
    return [(trial.state, dict(trial.intermediate_values)) for trial in trials(study)]


def run(database: Database, search: SearchSettings = ROWS) -> tuple[Study, Batches]:
    study = open_study(database, settings=search, space=SPACE)
    batches = Batches(study)
    batches.run()
    return study, batches


def test_trials_see_as_many_rows_and_are_compared_at_equal_shares(database: Database) -> None:
    study, batches = run(database)
    assert {spec.hyper.batch_size: spec.steps for spec in batches.specs.values()} == {4: 120, 16: 30, 64: 8}
    for trial in trials(study):
        assert set(trial.intermediate_values) <= set(STEPS)
        if trial.state is TrialState.COMPLETE:
            assert tuple(sorted(trial.intermediate_values)) == STEPS
    ended = [trial.state for trial in trials(study)]
    assert ended.count(TrialState.COMPLETE) >= 2
    assert TrialState.PRUNED in ended
    complete = [t.number for t in trials(study) if t.state is TrialState.COMPLETE]
    assert {study_step(database, number) for number in complete} <= {120, 30, 8}
    assert check(database, "study", finished=True, max_trials=12) == []


def study_step(database: Database, number: int) -> int:
    """The last step of the trial, as SQL has it: one of its own."""
    return max(each.step for each in database.store("study").measurements(number))


def test_rungs_are_those_of_a_study_in_steps_of_the_smallest_batch(database: Database) -> None:
    study, _ = run(database)
    first = [trial for trial in trials(study) if trial.intermediate_values]
    for trial in first:
        batch_size = trial.params["batch_size"]
        for step, value in trial.intermediate_values.items():
            spec = study_spec(trial.number, batch_size, trial.params["learning_rate"])
            own = max(1, math.floor(step * 4 / batch_size + 0.5))
            assert value == loss(spec, own)


def study_spec(number: int, batch_size: int, rate: float) -> TrialSpec:
    hyper = Hyperparameters(batch_size=batch_size, learning_rate=rate)
    return TrialSpec(number=number, params={}, hyper=hyper, seed=0, data_seed=0, steps=1, evaluate_every=1)


def test_a_new_driver_continues_as_if_nothing_had_happened(database: Database, empty_database: object) -> None:
    study = open_study(database, settings=ROWS, space=SPACE)
    batches = Batches(study)
    for run_number in range(2, 40):
        batches.run(rounds=1)
        if batches.study.finished:
            break
        batches.study.interrupt("the driver ended")
        batches.study = open_study(database, settings=ROWS, space=SPACE, run=run_number)
    batches.run()
    assert check(database, "study", finished=True, max_trials=12) == []
    for state, curve in curves(batches.study):
        assert set(curve) <= set(STEPS)
        assert state is not TrialState.COMPLETE or tuple(sorted(curve)) == STEPS


def test_budgets_count_steps_of_the_smallest_batch(database: Database) -> None:
    study, _ = run(database, settings(**{**vars_of(ROWS), "max_steps": 400}))
    assert 300 <= study.spent_steps <= 400
    assert study.outlook().steps == study.spent_steps


def vars_of(search: SearchSettings) -> dict[str, object]:
    return {name: getattr(search, name) for name in ("pruner", "trials", "steps", "step_rows", "evaluations", "seed")}


def test_a_lost_value_is_found(database: Database) -> None:
    run(database)
    with database.writing("do damage") as connection:
        connection.execute(text("UPDATE automl_metric_values SET value = 7.5 WHERE trial = 0"))
    assert {violation.id for violation in check(database, "study", finished=True)} >= {"I23"}
