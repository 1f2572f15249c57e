"""Replaying a table of curves: which row a trial gets, what it says, what is refused, and a whole search."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from automl.errors import DataError
from automl.execution.simulated import CurveTable, TableHost, read_table
from automl.lora import Hyperparameters
from automl.trial import Measurement, Scalar, StopReason, TrialFailure, TrialSpec


def small_table() -> CurveTable:
    return CurveTable(
        names=("lr", "width"),
        configurations=np.array([[1e-4, 1.0], [1e-3, 1.0], [1e-2, 2.0]]),
        curves=np.array([[1.0, 0.9, 0.8], [1.0, 0.7, 0.5], [1.0, np.nan, np.nan]]),
        log=frozenset({"lr"}),
    )


def spec(number: int, steps: int = 3, evaluate_every: int = 1, **params: Scalar) -> TrialSpec:
    return TrialSpec(
        number=number,
        params=params,
        hyper=Hyperparameters(),
        seed=0,
        data_seed=0,
        steps=steps,
        evaluate_every=evaluate_every,
    )


def test_a_trial_gets_the_nearest_row_on_the_log_scale_that_is_not_used() -> None:
    host = TableHost(small_table(), metric="loss", capacity=2)
    host.open(spec(0, lr=8e-4, width=1.0))
    host.open(spec(1, lr=8e-4, width=1.0))
    assert host.rows == {0: 1, 1: 0}


def test_every_resident_trial_says_its_next_value() -> None:
    host = TableHost(small_table(), metric="loss", capacity=2)
    host.open(spec(0, lr=1e-4, width=1.0))
    host.open(spec(1, lr=1e-3, width=1.0))
    values = [[item.metrics["loss"] for item in host.advance() if isinstance(item, Measurement)] for _ in range(4)]
    assert values == [[1.0, 1.0], [0.9, 0.7], [0.8, 0.5], []]
    assert host.evaluations == 6


def test_a_value_that_is_not_finite_ends_the_trial_as_diverged() -> None:
    host = TableHost(small_table(), metric="loss")
    host.open(spec(0, lr=1e-2, width=2.0))
    host.advance()
    (failure,) = host.advance()
    assert isinstance(failure, TrialFailure)
    assert (failure.reason, failure.step) == (StopReason.DIVERGED, 2)
    assert not host.advance()


def test_a_parked_trial_goes_on_where_it_was() -> None:
    host = TableHost(small_table(), metric="loss")
    host.open(spec(0, lr=1e-3, width=1.0))
    host.advance()
    host.park(0)
    assert not host.advance()
    assert [item.step for item in host.open(spec(0, lr=1e-3, width=1.0))] == [1]
    assert [item.step for item in host.advance() if isinstance(item, Measurement)] == [2]


def test_steps_are_those_of_the_search() -> None:
    host = TableHost(small_table(), metric="loss")
    host.open(spec(0, steps=25, evaluate_every=10, lr=1e-3, width=1.0))
    steps = [item.step for _ in range(3) for item in host.advance() if isinstance(item, Measurement)]
    assert steps == [10, 20, 25]


def test_a_host_that_starts_again_gives_every_trial_its_row() -> None:
    first = TableHost(small_table(), metric="loss")
    trials = [spec(number, lr=8e-4, width=1.0) for number in range(4)]
    for trial in trials[:2]:
        first.open(trial)
    again = TableHost(small_table(), metric="loss", begun=[(trial.number, trial.params) for trial in trials[:2]])
    again.open(trials[1])
    assert again.rows == first.rows
    for host in (first, again):
        host.open(trials[2])
    assert again.rows == first.rows
    with pytest.raises(DataError, match="used up"):
        TableHost(small_table(), metric="loss", begun=[(trial.number, trial.params) for trial in trials]).open(
            trials[3]
        )


def test_the_baseline_is_the_median_first_value() -> None:
    assert TableHost(small_table(), metric="loss").baseline() == {"loss": 1.0}


@pytest.mark.parametrize(("changes", "message"), [({"steps": 4}, "more evaluations than the table, which has 3")])
def test_a_trial_longer_than_the_table_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TableHost(small_table(), metric="loss").open(spec(0, **changes))  # type: ignore[arg-type]


def test_a_used_up_table_is_refused() -> None:
    host = TableHost(small_table(), metric="loss", capacity=4)
    for number in range(3):
        host.open(spec(number, lr=1e-3, width=1.0))
    with pytest.raises(DataError, match="3 rows are used up"):
        host.open(spec(3, lr=1e-3, width=1.0))


def test_ranges_are_those_of_the_columns() -> None:
    lr, width = small_table().parameters()
    assert (lr.low, lr.high, lr.log) == (1e-4, 1e-2, True)
    assert (width.low, width.high, width.log) == (1.0, 2.0, False)


def test_reading_a_file_with_other_names(tmp_path: Path) -> None:
    table = small_table()
    path = tmp_path / "curves.npz"
    np.savez(path, hp=np.array(table.names), configurations=table.configurations, loss=table.curves)
    read = read_table(path, arrays={"names": "hp", "curves": "loss"}, log=("lr",))
    assert read.names == table.names
    assert read.log == table.log
    assert math.isnan(read.curves[2, 2])
    with pytest.raises(DataError, match="has no array 'names'; it has hp, configurations, loss"):
        read_table(path, arrays={}, log=None)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_what_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "curves.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a table of curves"):
        read_table(path, arrays={}, log=None)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "curves.npz"
    np.savez(path, names=np.array(["lr"], dtype=object), configurations=np.ones((2, 1)), curves=np.ones((2, 1)))
    with pytest.raises(DataError, match="not a table of curves"):
        read_table(path, arrays={}, log=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("lr", "lr")}, "1 different names for 2 columns"),
        ({"curves": np.ones((2, 3))}, "but there are 3 configurations"),
        ({"configurations": np.full((3, 2), np.nan)}, "not finite"),
        ({"log": frozenset({"depth"})}, "there is no column 'depth'"),
        ({"configurations": np.zeros((3, 2))}, "'lr' has values that are not positive"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    table = small_table()
    fields = {name: getattr(table, name) for name in ("names", "configurations", "curves", "log")}
    with pytest.raises(ValueError, match=message):
        CurveTable(**{**fields, **changes})  # type: ignore[arg-type]
