"""When a trial's best evaluation was, and when it ends itself: rules on curves, whatever trained them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from automl.lora import Hyperparameters
from automl.training.early_stopping import best_of, reason_to_stop, steps_to_keep
from automl.trial import Measurement, TrialSpec

FALLING = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)


def spec(**changes: Any) -> TrialSpec:
    base: dict[str, Any] = {"number": 0, "params": {}, "hyper": Hyperparameters(), "seed": 1, "data_seed": 1}
    policy: dict[str, Any] = {"steps": 120, "evaluate_every": 20, "best_by": "accuracy", "early_stopping": True}
    return TrialSpec(**base | policy | changes)


def curve(
    values: Sequence[float], training: Sequence[float] = FALLING, losses: Sequence[float] | None = None, every: int = 20
) -> list[Measurement]:
    """Measurements every so many steps. losses: on the evaluation rows; left out: they follow the values."""
    held_out = losses or [1 - value for value in values]
    return [
        Measurement(trial=0, step=every * (place + 1), metrics={"accuracy": value, "loss": loss}, training_loss=trained)
        for place, (value, loss, trained) in enumerate(zip(values, held_out, training, strict=False))
    ]


def test_the_best_is_the_earliest_of_equals() -> None:
    found = best_of(spec(), curve((0.5, 0.7, 0.6, 0.7)))
    assert found is not None
    assert found.step == 40
    assert best_of(spec(best_by=""), curve((0.5, 0.7))) is None
    assert best_of(spec(), []) is None
    least = best_of(spec(best_by="loss"), curve((0.5, 0.7, 0.6, 0.7)))
    assert least is not None
    assert least.step == 40


def test_values_on_fewer_rows_are_not_compared() -> None:
    grid = ((20, 32), (40, 64), (60, 64), (80, 32), (120, 256))
    found = best_of(spec(evaluations=grid), curve((0.9, 0.5, 0.6, 1.0)))
    assert found is not None
    assert found.step == 60


def test_what_either_of_two_states_needs_stays_on_disk() -> None:
    assert steps_to_keep(spec(), curve((0.7, 0.5, 0.6, 0.8))) == {20, 80}  # the newest may turn out to be damaged
    assert steps_to_keep(spec(), curve((0.7, 0.5, 0.6))) == {20}
    assert steps_to_keep(spec(best_by=""), curve((0.7, 0.5, 0.6))) == set()


@pytest.mark.parametrize(
    ("values", "training", "reason"),
    [
        ((0.5, 0.7, 0.6, 0.5), FALLING, "overfits since step 40"),
        ((0.5, 0.6, 0.5, 0.7), FALLING, ""),  # better again
        ((0.5, 0.7, 0.6), FALLING, ""),  # once is no pattern
        ((0.5, 0.7, 0.7, 0.7), FALLING, ""),  # as good as before
        ((0.5, 0.7, 0.5, 0.5), (1.0, 0.5, 1.4, 3.0), "diverges since step 40"),
        ((0.5, 0.7, 0.5, 0.5), (1.0, 0.5, 0.7, 0.99), "diverges since step 40"),  # back where it began
        ((0.5, 0.7, 0.5, 0.5), (1.0, 0.5, 0.7, 0.8), ""),  # a rough stretch
        ((0.5, 0.4, 0.5), (1.0, 1.01, 0.99), "flat since step 20"),
        ((0.5, 0.5), (1.0, 1.0), ""),  # too early to tell
        ((0.5, 0.51, 0.52), (1.0, 1.0, 0.99), ""),  # the training loss barely falls, but it learns
    ],
)
def test_a_trial_ends_itself_only_for_a_reason(values: Sequence[float], training: Sequence[float], reason: str) -> None:
    assert reason_to_stop(spec(), curve(values, training)) == reason
    assert reason_to_stop(spec(early_stopping=False), curve(values, training)) == ""


def test_a_metric_that_falls_while_the_loss_does_too_is_no_overfitting() -> None:
    assert reason_to_stop(spec(), curve((0.5, 0.7, 0.6, 0.6), losses=(1.0, 0.9, 0.8, 0.7))) == ""


def test_the_last_step_is_the_end_without_any_reason() -> None:
    assert reason_to_stop(spec(steps=80), curve((0.5, 0.7, 0.6, 0.5))) == ""
    assert reason_to_stop(spec(stop_after=80), curve((0.5, 0.7, 0.6, 0.5))) == ""


def test_patience_lasts_a_share_of_the_trial_however_often_it_is_measured() -> None:
    often = curve((0.5, 0.7, 0.6, 0.5, 0.4, 0.3), every=5)
    assert [reason_to_stop(spec(evaluate_every=5), often[:count]) for count in (4, 5)] == ["", ""]
    assert reason_to_stop(spec(evaluate_every=5), often) == "overfits since step 10"


def test_a_measurement_on_other_rows_is_no_evidence() -> None:
    grid = ((20, 32), (40, 64), (60, 64), (80, 32), (100, 64), (120, 256))
    seen = curve((0.5, 0.7, 0.6, 0.1, 0.5))
    assert reason_to_stop(spec(evaluations=grid), seen[:4]) == ""
    assert reason_to_stop(spec(evaluations=grid), seen) == "overfits since step 40"


def test_a_trainer_that_tells_no_training_loss_ends_nothing() -> None:
    silent = [replace(item, training_loss=None) for item in curve((0.5, 0.7, 0.6, 0.5))]
    assert reason_to_stop(spec(), silent) == ""
