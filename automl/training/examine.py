"""What a verification wants to know of a finished trial besides its metrics: its cuts, and its validation rows.

A cut is made in place: the update of each module keeps its first directions, the others become zero, whatever holds the
matrices. Afterwards every tensor is what it was, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl.errors import CheckpointError, is_out_of_memory
from automl.importance.cuts import even_ranks, global_ranks
from automl.importance.heldout import in_batches
from automl.importance.squeeze import Directions, directions
from automl.lanes import trial_name
from automl.methods.base import LowRank
from automl.outcomes import Outcomes, encoded
from automl.tasks.base import Batch, Row
from automl.tasks.batches import some_of
from automl.training.moments import moments_of
from automl.trial import PEAK_BYTES, Cut, Examination, Examined, Measurement, Metrics

logger = logging.getLogger(__name__)

SEEN_ROWS = 256
"""Training rows on which is seen what the modules' inputs are."""

Evaluated = tuple[dict[str, float], Outcomes | None]


class Subject(NamedTuple):
    """A finished trial. updates: its low-rank matrices as they are used, of the modules in the same order.

    batch: rows as a batch on the device. forward: a pass of the adapted model. evaluate: all metrics over some rows,
    and what they are made of. rows: that the trial is judged on; validation_rows: others that it may be. step_bytes:
    memory of its last step; None where it is not known of one trial alone.
    """

    updates: Sequence[LowRank]
    modules: Sequence[nn.Module]
    train_rows: Sequence[Row]
    rows: Sequence[Row]
    validation_rows: Sequence[Row]
    batch: Callable[[Sequence[Row]], Batch]
    forward: Callable[[Batch], object]
    evaluate: Callable[[Sequence[Row]], Evaluated]
    step_bytes: Callable[[], int] | None = None


def own_outcomes(examination: Examination | None, metrics: Metrics, outcomes: Outcomes | None) -> tuple[Examined, ...]:
    """What a trial's own last measurement was made of, if that is wanted and told."""
    if examination is None or not examination.by_row or outcomes is None:
        return ()
    return (Examined("", examination.split, metrics, encoded(outcomes)),)


def examined(measurement: Measurement, examination: Examination | None, subject: Callable[[], Subject]) -> Measurement:
    """The measurement of a finished trial with what its examination finds; without it where memory is too short."""
    if examination is None:
        return measurement
    try:
        found = tuple(_examine(examination, subject()))
    except (RuntimeError, MemoryError, CheckpointError) as error:
        if not isinstance(error, CheckpointError) and not is_out_of_memory(error):
            raise
        logger.warning("%s: its smaller sizes are not measured: %s", trial_name(measurement.trial), error)
        return measurement
    return replace(measurement, examined=(*measurement.examined, *found))


def _examine(examination: Examination, subject: Subject) -> Iterator[Examined]:
    if examination.memory and subject.step_bytes is not None:
        yield Examined("", examination.split, {PEAK_BYTES: float(subject.step_bytes())})
    if examination.on_validation:
        yield _examined("", "validation", subject.evaluate(subject.validation_rows), by_row=False)
    if not examination.cuts:
        return
    turned = _turned(subject)
    with _restored(subject.updates):
        for cut in examination.cuts:
            _write(subject.updates, turned, _ranks(cut, turned))
            yield _examined(cut.name, examination.split, subject.evaluate(subject.rows), by_row=examination.by_row)


def _turned(subject: Subject) -> list[Directions]:
    chunks = in_batches(some_of(subject.train_rows, SEEN_ROWS))
    moments = moments_of(subject.modules, subject.updates, map(subject.batch, chunks), subject.forward)
    pairs = zip(subject.updates, moments, strict=True)
    return [directions(update, update.scaling, moment) for update, moment in pairs]


def _ranks(cut: Cut, turned: Sequence[Directions]) -> list[int]:
    strengths = [each.strengths for each in turned]
    costs = [each.a.shape[1] + each.b.shape[0] for each in turned]
    return (
        even_ranks(strengths, cut.parameters // sum(costs))
        if cut.even
        else global_ranks(strengths, costs, cut.parameters)
    )


@torch.no_grad()
def _write(updates: Sequence[LowRank], turned: Sequence[Directions], ranks: Sequence[int]) -> None:
    for update, found, rank in zip(updates, turned, ranks, strict=True):
        update.a.zero_()[:rank] = found.a[:rank].to(update.a)
        update.b.zero_()[:, :rank] = found.b[:, :rank].to(update.b)


@contextmanager
def _restored(updates: Sequence[LowRank]) -> Iterator[None]:
    """Put all matrices back as they were after the block."""
    before: list[tuple[Tensor, Tensor]] = [(update.a.detach().clone(), update.b.detach().clone()) for update in updates]
    try:
        yield
    finally:
        with torch.no_grad():
            for update, (a, b) in zip(updates, before, strict=True):
                update.a.copy_(a)
                update.b.copy_(b)


def _examined(name: str, split: str, found: Evaluated, *, by_row: bool) -> Examined:
    metrics, outcomes = found
    return Examined(name, split, metrics, encoded(outcomes) if by_row and outcomes is not None else "")
