"""One failure of a trial, whoever trains it: its reason, its message, and how much of a traceback is kept."""

from __future__ import annotations

import math
import pickle

import pytest

from automl.errors import CheckpointError, Diverged, OutOfMemory
from automl.trial import LONGEST_TRACEBACK, StopReason, check_finite, failure_of


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (Diverged("loss is nan"), StopReason.DIVERGED, "loss is nan"),
        (OutOfMemory("1 GB"), StopReason.OOM, "1 GB"),
        (
            CheckpointError("step-00000004: state.json is damaged"),
            StopReason.ERROR,
            "step-00000004: state.json is damaged",
        ),
        (KeyError("x"), StopReason.ERROR, "KeyError: 'x'\n"),
    ],
    ids=["diverged", "memory", "slot file", "bug"],
)
def test_exceptions_of_a_trial_are_named(error: Exception, reason: StopReason, message: str) -> None:
    failure = failure_of(error, trial=7, step=3)
    assert (failure.trial, failure.step, failure.reason, failure.message) == (7, 3, reason, message)
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_of_a_long_traceback_the_end_is_kept() -> None:
    try:
        raise RuntimeError("x" * 2 * LONGEST_TRACEBACK + "the last words")
    except RuntimeError as error:
        message = failure_of(error, trial=7, step=3).message
    assert len(message) == LONGEST_TRACEBACK
    assert message.endswith("the last words\n")


def test_the_first_value_that_is_not_finite_is_named() -> None:
    check_finite({"loss": 0.5, "accuracy": 1.0}, 8)
    with pytest.raises(Diverged, match="accuracy is inf at step 8"):
        check_finite({"loss": 0.5, "accuracy": math.inf, "f1": math.nan}, 8)
