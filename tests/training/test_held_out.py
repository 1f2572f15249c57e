"""The look at held-out rows that every trainer takes: what it adds to a measurement, and that it may be left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch

from automl.tasks.base import Row
from automl.training.held_out import measured_on
from automl.trial import Measurement, ModuleImportance

ROWS: list[Row] = [{"input_ids": [number], "labels": 0} for number in range(8)]


def importance(module: str) -> ModuleImportance:
    return ModuleImportance(
        module=module,
        rank=2,
        in_features=8,
        out_features=8,
        step=4,
        fraction_done=1.0,
        samples=1,
        sensitivity=1.0,
        uncertainty=0.1,
        effective_rank=1.5,
        relative_update=0.01,
        components=(1.0, 0.5),
    )


MEASUREMENT = Measurement(trial=3, step=4, metrics={"loss": 1.0}, importances=(importance("key"), importance("query")))


def effects(batch: Sequence[Row]) -> list[float]:
    """Of `query` and `key`: the first number of the batch, and one that is the same for all batches."""
    return [float(batch[0]["input_ids"][0]), -2.0]


def test_means_go_to_their_modules_whatever_the_order() -> None:
    key, query = measured_on(ROWS, MEASUREMENT, ["query", "key"], effects).importances
    assert (key.module, key.held_out, key.held_out_error) == ("key", -2.0, 0.0)
    assert (query.module, query.held_out) == ("query", 3.0)  # batches of two rows begin with 0, 2, 4, 6
    assert query.held_out_error == pytest.approx((20 / 12) ** 0.5)


def test_without_importances_or_rows_nothing_is_looked_at() -> None:
    def unwanted(batch: Sequence[Row]) -> list[float]:
        raise AssertionError("it looked")

    bare = Measurement(trial=3, step=4, metrics={"loss": 1.0})
    assert measured_on(ROWS, bare, ["query", "key"], unwanted) is bare
    assert measured_on([], MEASUREMENT, ["query", "key"], unwanted) is MEASUREMENT


def test_lack_of_memory_leaves_the_measurement_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def large(batch: Sequence[Row]) -> list[float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with caplog.at_level(logging.WARNING):
        assert measured_on(ROWS, MEASUREMENT, ["query", "key"], large) is MEASUREMENT
    assert "trial 3: no memory to look at held-out rows: CUDA out of memory" in caplog.text


def test_other_errors_are_raised() -> None:
    def broken(batch: Sequence[Row]) -> list[float]:
        raise RuntimeError("expected a tensor")

    with pytest.raises(RuntimeError, match="expected a tensor"):
        measured_on(ROWS, MEASUREMENT, ["query", "key"], broken)
