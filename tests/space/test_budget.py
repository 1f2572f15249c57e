"""What a new space file begins with, on shapes of data from 60 rows to a million: budgets that one would sign."""

from __future__ import annotations

import itertools

import pytest

from automl.space.budget import Budget, starting_budget


@pytest.mark.parametrize(
    ("rows", "classes", "max_length", "batch_size", "steps", "length"),
    [
        (36, 2, 32, 8, 90, "epochs: 20"),  # twenty passes, no more
        (60, 0, 128, 8, 101, "epochs: 13.4"),
        (200, 150, 32, 8, 375, "epochs: 15"),  # twenty rows of each class
        (600, 2, 64, 8, 225, "epochs: 3"),
        (2_706, 150, 32, 16, 508, "epochs: 3"),
        (4_852, 6, 24, 32, 455, "epochs: 3"),
        (6_002, 77, 48, 32, 563, "epochs: 3"),
        (31_200, 0, 512, 32, 1_000, "examples: 32000"),  # Alpaca: one pass
        (600_000, 1_000, 64, 32, 1_000, "examples: 32000"),
        (3_000, 0, 8_000, 2, 1_000, "examples: 2000"),  # tokens, not rows, fill a step
    ],
)
def test_shapes_of_data(rows: int, classes: int, max_length: int, batch_size: int, steps: int, length: str) -> None:
    found = starting_budget(rows, classes, max_length)
    assert (found.batch_size, found.steps, found.length) == (batch_size, steps, length)
    assert found.meaning.startswith(f"of a full trial, {steps:,} steps of {batch_size} rows: ")


@pytest.mark.parametrize("rows", [1, 2, 9, 50, 999, 1_000, 2_999, 3_000, 10_000, 10_667, 200_000])
@pytest.mark.parametrize("classes", [0, 2, 1_000])
@pytest.mark.parametrize("max_length", [1, 128, 100_000])
def test_no_budget_is_empty_or_endless(rows: int, classes: int, max_length: int) -> None:
    found = starting_budget(rows, classes, max_length)
    assert 1 <= found.batch_size <= 32
    assert 1 <= found.steps <= 1_000
    assert found.batch_size * max_length <= 16_384 or found.batch_size == 1
    assert f"{rows:,} training rows" in found.meaning


def test_more_rows_never_mean_fewer_to_see() -> None:
    seen = [(found.batch_size * found.steps) for found in map(_of_two_classes, range(1, 12_000, 7))]
    assert all(later >= 0.97 * before for before, later in itertools.pairwise(seen))


def _of_two_classes(rows: int) -> Budget:
    return starting_budget(rows, 2, 64)
