from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from automl.lora import Hyperparameters
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import Row
from automl.tasks.batches import batch_rows, evaluation_batches, evaluation_rows, rows_at_once, some_of


@pytest.mark.parametrize(("batch_size", "rows"), [(8, 64), (8, 60), (7, 5), (1, 3), (16, 100)])
def test_every_epoch_visits_every_row_once(batch_size: int, rows: int) -> None:
    steps = -(-3 * rows // batch_size)
    stream = [row for step in range(steps) for row in batch_rows(11, step, batch_size, rows)]
    epochs = [stream[start : start + rows] for start in range(0, 3 * rows, rows)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    assert rows < 10 or epochs[0] != epochs[1]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forwards = [batch_rows(3, step, 8, 50) for step in range(40)]
    backwards = [batch_rows(3, step, 8, 50) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert batch_rows(4, 0, 8, 50) != forwards[0]


def test_the_order_never_changes() -> None:
    # Written down: a changed order would change the curve of every trial that is continued.
    assert batch_rows(7, 0, 8, 100) == [75, 57, 43, 2, 42, 20, 68, 69]
    assert batch_rows(7, 1000, 8, 100) == [2, 96, 82, 90, 70, 35, 42, 39]


@pytest.mark.parametrize(("step", "batch_size", "rows"), [(-1, 8, 10), (0, 0, 10), (0, 8, 0)])
def test_impossible_batches_are_refused(step: int, batch_size: int, rows: int) -> None:
    with pytest.raises(ValueError, match=f"step {step}, batch size {batch_size}, {rows} rows"):
        batch_rows(0, step, batch_size, rows)


def test_evaluation_rows_are_a_fixed_subset() -> None:
    chosen = evaluation_rows(5, 1000, 100)
    assert chosen == evaluation_rows(5, 1000, 100) == sorted(set(chosen))
    assert len(chosen) == 100
    assert chosen != evaluation_rows(6, 1000, 100)


@pytest.mark.parametrize("limit", [0, 10, 11])
def test_evaluation_rows_may_be_all(limit: int) -> None:
    assert evaluation_rows(5, 10, limit) == list(range(10))


def test_a_part_of_the_evaluation_rows_lies_within_a_larger_part() -> None:
    rows = rows_of(range(1, 101))
    parts = [some_of(rows, count) for count in (10, 40, 100, 1000, None)]
    assert [len(part) for part in parts] == [10, 40, 100, 100, 100]
    numbers = [[row["labels"] for row in part] for part in parts]
    assert set(numbers[0]) < set(numbers[1]) < set(numbers[2])
    assert numbers[1] == sorted(numbers[1])  # in their order
    assert numbers[0][-1] > 50  # from all over them
    assert numbers[0] == [row["labels"] for row in some_of(rows, 10)]


def rows_of(lengths: Sequence[int]) -> list[Row]:
    return [{"input_ids": [5] * length, "labels": number} for number, length in enumerate(lengths)]


@pytest.fixture
def task() -> Any:
    return make_task(TaskSettings(type="classification", data=DataSettings(kind="files"), metric="accuracy"))


def test_evaluation_batches_hold_every_row_once_within_the_bound(task: Any) -> None:
    lengths = [3, 9, 1, 30, 4, 4, 8, 12, 2, 40]
    batches = list(evaluation_batches(task, rows_of(lengths), range(1, 10), pad_id=0, max_tokens=32))
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == list(range(1, 10))
    shapes = [tuple(batch["input_ids"].shape) for batch in batches]
    assert shapes[0] == (1, 40)  # longer than the bound: alone
    assert all(rows * width <= 32 for rows, width in shapes[1:])
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_evaluation_batches_take_chosen_rows_only(task: Any) -> None:
    batches = evaluation_batches(task, rows_of([3, 3, 3, 3]), [0, 2], pad_id=0, max_tokens=100)
    assert [batch["labels"].tolist() for batch in batches] == [[0, 2]]


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [((4, 4, 4, 4), 100, 4), ((4, 4, 4, 4), 8, 2), ((4, 9, 4, 4, 4), 18, 2), ((30, 4), 8, 1), ((2,) * 17, 32, 9)],
)
def test_a_batch_is_computed_in_parts_of_equal_size(lengths: tuple[int, ...], most: int, expected: int) -> None:
    task = make_task(TaskSettings(type="classification", data=DataSettings(kind="files"), metric="loss"))
    rows = [{"input_ids": [1] * length, "labels": 0} for length in lengths]
    assert rows_at_once(task, rows, most) == expected


def test_a_batch_of_pairs_is_counted_by_the_texts_as_they_are_padded_and_that_of_kto_is_not_parted() -> None:
    task = make_task(TaskSettings(type="preference", data=DataSettings(kind="files"), metric="loss"))
    rows = [{"input_ids": [1] * 10, "labels": [1] * 10, "first": 4} for _ in range(8)]
    assert rows_at_once(task, rows, 2 * 6 * 4) == 4
    assert rows_at_once(task.for_trial(Hyperparameters(own=(("loss", "kto"),))), rows, 1) == 8
    shapes = [batch["input_ids"].shape for batch in evaluation_batches(task, rows, range(8), pad_id=0, max_tokens=48)]
    assert shapes == [(8, 6), (8, 6)]


def test_rows_without_a_token_are_no_division_by_zero(task: Any) -> None:
    rows = rows_of([0, 0, 0])
    assert rows_at_once(task, rows, 2) == 2
    batches = list(evaluation_batches(task, rows, range(3), pad_id=0, max_tokens=2))
    assert [len(batch["labels"]) for batch in batches] == [2, 1]
