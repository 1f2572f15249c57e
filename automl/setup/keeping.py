"""The data of `keep:`: whether the study's model can be measured on it, and what it shares with the training data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from automl.errors import ConfigError, DataError, Problem
from automl.head import WRITERS
from automl.space.spec import SweepSpec
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Prepared, Task
from automl.tasks.joining import rows_of_block
from automl.training.kept import Keep

_COMPARED = 100_000
"""Training rows that are compared with those of `keep:`."""
_TELLING = 6
"""Tokens to learn from which on two rows with the same ones are one; short answers are shared by chance."""


def prepare_keep(
    spec: SweepSpec, task: Task, prepared: Prepared, tokenizer: Any, cache: Path
) -> tuple[Keep | None, tuple[str, ...]]:
    """The prepared rows of `keep:`, None without it, and what there is to say of them.

    Raises ConfigError if the model of the study's task is not a language model, DataError as a task's data does.
    """
    if spec.keep is None:
        return None, ()
    if task.head(prepared).kind != "causal-lm":
        why = "has an encoder" if task.head(prepared).kind in WRITERS else "writes no text"
        message = (
            f"a model of task {spec.task.type} {why}, so what it forgets cannot be measured; keep is for decoders that"
            " write text (completion, instruction, preference)"
        )
        raise ConfigError([Problem(spec.source, 0, 0, "keep", message)])
    kept = make_task(spec.keep)
    try:
        made = kept.prepare(tokenizer, cache)
    except DataError as error:
        raise DataError(f"keep: {error}") from error
    special = set(tokenizer.all_special_ids)
    rows = [_learnt(row, special) for row in kept.rows(made, "validation")]
    blocks = islice(task.rows(prepared, "train"), _COMPARED)
    trained = {_learnt(row, special) for block in blocks for row in rows_of_block(block)}
    notes = (*made.notes, *_shared(rows, trained))
    return Keep(task=spec.keep, prepared=made), tuple(f"keep: {note}" for note in notes)


def _shared(rows: Collection[tuple[int, ...]], trained: Collection[tuple[int, ...]]) -> list[str]:
    copies = sum(len(row) >= _TELLING and row in trained for row in rows)
    return [f"{copies} of {len(rows)} rows are trained on, too, and say nothing of what is forgotten"] if copies else []


def _learnt(row: Mapping[str, Any], special: Collection[int]) -> tuple[int, ...]:
    """The tokens that are to be learnt, without those that templates add; none if the row is of another kind."""
    labels = row.get("labels", ())[1:]  # the first token is predicted from nothing
    return tuple(label for label in labels if label != IGNORED and label not in special)
