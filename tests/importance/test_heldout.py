"""How many held-out rows are looked at, and in which batches."""

from __future__ import annotations

import pytest

from automl.importance.heldout import HELD_OUT_BATCH, HELD_OUT_ROWS, affordable_rows, in_batches


@pytest.mark.parametrize(
    ("trained", "rows"), [(0, 0), (320, 0), (399, 0), (400, 4), (1_280, 12), (25_600, 256), (10**7, HELD_OUT_ROWS)]
)
def test_looking_costs_at_most_a_hundredth_of_the_training(trained: int, rows: int) -> None:
    assert affordable_rows(trained) == rows
    assert affordable_rows(trained) <= trained / 100


@pytest.mark.parametrize("count", [1, 3, 4, 12, 63, 64, 65, 200, 256])
def test_every_row_is_in_one_batch_and_few_rows_make_four(count: int) -> None:
    batches = in_batches(range(count))
    assert [row for batch in batches for row in batch] == list(range(count))
    assert len(batches) >= min(4, count)
    assert all(0 < len(batch) <= HELD_OUT_BATCH for batch in batches)
