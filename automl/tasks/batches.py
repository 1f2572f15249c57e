"""Which rows a step trains on, and in which batches rows are evaluated: answers that depend on seed and step alone.

To ask for a batch is a sign of life (`automl.watchdog`).
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache

from automl.errors import DataError
from automl.tasks.base import Batch, Row, Task
from automl.watchdog import beat

_COUNTED = 2_000


def batch_rows(seed: int, step: int, batch_size: int, rows: int) -> list[int]:
    """Row numbers of the effective batch of `step` (from 0), out of `rows` rows.

    The stream of all steps visits every row once per epoch, in a new order each epoch; a batch may span two. The
    answer depends on nothing else, so a trial that continues from a checkpoint sees the rows it would have seen.
    """
    if rows < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"step {step}, batch size {batch_size}, {rows} rows; 0, 1 and 1 are the least")
    beat()
    places = range(step * batch_size, (step + 1) * batch_size)
    return [_order(seed, place // rows, rows)[place % rows] for place in places]


@lru_cache(maxsize=4)  # a batch may span two epochs; a few trials of one host may stand in different ones
def _order(seed: int, epoch: int, rows: int) -> array[int]:
    order = array("q", range(rows))
    random.Random(f"{seed}:{epoch}").shuffle(order)  # noqa: S311  # an order, not a secret
    return order


def evaluation_rows(seed: int, rows: int, limit: int) -> list[int]:
    """The fixed subset of at most `limit` row numbers that every evaluation uses, ascending; 0 = all rows."""
    if limit <= 0 or limit >= rows:
        return list(range(rows))
    return sorted(random.Random(f"{seed}:evaluation").sample(range(rows), limit))  # noqa: S311


def some_of(rows: Sequence[Row], count: int | None) -> Sequence[Row]:
    """A fixed random part of the rows, in their order, a smaller one within any larger one; None = all of them."""
    if count is None or count >= len(rows):
        return rows
    order = list(range(len(rows)))
    random.Random("part of the evaluation rows").shuffle(order)  # noqa: S311
    return [rows[index] for index in sorted(order[:count])]


def mean_tokens(task: Task, rows: Sequence[Row]) -> float:
    """Tokens of a row on average, as a trainer counts them: by at most _COUNTED rows from one end to the other."""
    chosen = [rows[index] for index in range(0, len(rows), -(-len(rows) // _COUNTED))]
    return sum(int(task.collate([row], 0)["attention_mask"].sum()) for row in chosen) / len(chosen)


def evaluation_batches(
    task: Task, rows: Sequence[Row], indices: Sequence[int], *, pad_id: int, max_tokens: int
) -> Iterator[Batch]:
    """Padded batches over `indices`, longest rows first, each of at most `max_tokens` tokens with padding.

    Rows of like length share a batch, which keeps padding low; longest first, so that too little memory shows at once.
    A row longer than `max_tokens` gets a batch of its own. Metrics do not depend on the order.
    """
    picked = sorted((rows[index] for index in indices), key=task.row_tokens, reverse=True)
    start = 0
    while start < len(picked):
        beat()
        size = max(1, max_tokens // _tokens(task, picked[start]))
        yield task.collate(picked[start : start + size], pad_id)
        start += size


def rows_at_once(task: Task, rows: Sequence[Row], most_tokens: int) -> int:
    """Rows of a batch in one forward pass, so that no part of it has more than `most_tokens`, padding included.

    All parts have as many rows, but for the last one. A row that is longer is a part of its own. All rows if the task
    compares them.
    """
    if task.compares_rows:
        return len(rows)
    longest = max(_tokens(task, row) for row in rows)
    parts = math.ceil(len(rows) / max(1, most_tokens // longest))
    return math.ceil(len(rows) / parts)


def _tokens(task: Task, row: Row) -> int:
    """Tokens of the texts of a row, padded to the longest; at least 1, as a tokenizer may know nothing of a text."""
    return task.texts * max(1, task.row_tokens(row))


def require_targets(count: int, *, step: int) -> None:
    """Raise DataError if the batch of `step` (from 0) has no loss terms: nothing can be learnt from it."""
    if count == 0:
        raise DataError(f"the batch of step {step + 1} has no target to learn from: every token is masked")
