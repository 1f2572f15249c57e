"""Trials with the objective at every step at which they were measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from automl.space.length import batch_size_of, grid_steps
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.trials import CurvePoint, TrialRow
from automl.trial import Measurement


def with_curves(
    rows: Iterable[TrialRow],
    measurements: Iterable[Measurement],
    metric: str,
    *,
    search: SearchSettings,
    space: SearchSpace,
) -> tuple[TrialRow, ...]:
    """The rows with their curves, by steps on the study's grid (`automl.space.length`).

    A trial that has not ended gets the last value as its own.
    """
    rows = tuple(rows)
    batches = {row.number: batch_size_of(space, row.params) for row in rows}
    curves: dict[int, list[CurvePoint]] = defaultdict(list)
    for each in measurements:
        if metric in each.metrics and each.trial in batches:
            steps = grid_steps(search, each.step, batches[each.trial])
            curves[each.trial] += [CurvePoint(step, each.metrics[metric]) for step in steps]
    return tuple(_with_curve(row, curves[row.number]) for row in rows)


def _with_curve(row: TrialRow, curve: Sequence[CurvePoint]) -> TrialRow:
    last = curve[-1].value if curve else None
    return replace(row, value=last if row.value is None else row.value, curve=tuple(curve))
