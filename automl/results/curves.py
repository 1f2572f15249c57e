"""Trials with the objective at every step at which they were measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from automl.storage.trials import CurvePoint, TrialRow
from automl.trial import Measurement


def with_curves(rows: Iterable[TrialRow], measurements: Iterable[Measurement], metric: str) -> tuple[TrialRow, ...]:
    """The rows with their curves; a trial that has not ended gets the last value as its own."""
    curves: dict[int, list[CurvePoint]] = defaultdict(list)
    for each in measurements:
        if metric in each.metrics:
            curves[each.trial].append(CurvePoint(each.step, each.metrics[metric]))
    return tuple(_with_curve(row, curves[row.number]) for row in rows)


def _with_curve(row: TrialRow, curve: Sequence[CurvePoint]) -> TrialRow:
    last = curve[-1].value if curve else None
    return replace(row, value=last if row.value is None else row.value, curve=tuple(curve))
