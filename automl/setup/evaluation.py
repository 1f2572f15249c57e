"""When trials are measured and on how many rows, where the file leaves it open: chosen once, recorded, and kept.

Measuring as often as training allows, on all rows, takes more time than training: at 8 rows a step, 256 evaluation rows
every 10 steps are three fifths of a worker's time. What a search needs are values where trials are judged. An early
verdict is revised by later ones and bears more noise than the last, which decides what is called the best.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from automl.setup.prepare import Inputs
from automl.space.extremes import extremes
from automl.space.length import grid_of
from automl.space.spec import EVALUATE_EVERY, SearchSettings, SweepSpec
from automl.study.curves import rungs

SHARE = 0.15
"""Share of a trial's time that its measurements may take, the last one left out."""

LEAST_ROWS = 32
"""Below them a value says nothing."""

_STEP_PASSES = 2.25
"""Rows that could be evaluated in the time of one row's training step. Measured; a forward pass and a backward pass
without gradients of the frozen weights would be 2."""

_FIRST_RUNG = 2


def settle_evaluation(spec: SweepSpec, inputs: Inputs, recorded: Mapping[str, Any] | None = None) -> SweepSpec:
    """The spec with its measurements fixed; where the file says `evaluate_every`, it stays as it is.

    recorded: what the study's first run wrote down (`results.recorded.GROUND`), None if there was none: its
    measurements hold for the whole study.
    """
    if recorded:
        every = int(recorded.get("evaluate_every", _written(spec)))
        before = tuple((int(step), int(rows)) for step, rows in recorded.get("evaluations", ()))
        if not before or before[-1][0] == spec.search.steps:  # otherwise the user has changed the steps, and wants to
            return _spelt_out(
                replace(spec, search=replace(spec.search, evaluate_every=every, evaluations=before)), inputs
            )
    if spec.search.evaluations is not None:
        return _spelt_out(spec, inputs)
    chosen = evaluations(
        spec.search.steps,
        every=spec.search.evaluate_every,
        first_rung=int(spec.search.pruner_options.get("first_rung") or _FIRST_RUNG),
        batch_size=int(extremes(inputs.space, "batch_size")[0]),
        rows=whole_evaluation(spec, inputs),
        has_best=spec.search.checkpoint == "best",
    )
    return replace(spec, search=replace(spec.search, evaluations=chosen))


def _spelt_out(spec: SweepSpec, inputs: Inputs) -> SweepSpec:
    """The spec with every measurement named where trials make different numbers of steps between two of them."""
    search = spec.search
    if search.evaluations or not grid_of(search, inputs.space):
        return spec
    due = dict.fromkeys((*range(search.evaluate_every, search.steps, search.evaluate_every), search.steps))
    rows = whole_evaluation(spec, inputs)
    return replace(spec, search=replace(search, evaluations=tuple((step, rows) for step in due)))


def evaluations(
    steps: int, *, every: int, first_rung: int, batch_size: int, rows: int, has_best: bool = False
) -> tuple[tuple[int, int], ...]:
    """(step, rows) of each measurement of a full trial: at the rungs of a search by halving, and once before them.

    Each but the last takes at most SHARE of the time since the one before, and at least LEAST_ROWS rows; the last takes
    all rows. every: steps to the smallest of the grid. batch_size: the smallest of the space; rows: there are at most.
    has_best: the best checkpoint counts, so that there are some more, and those after the first rung share what they
    may take evenly: their values can be compared.
    """
    at_rungs = rungs(every, steps, first_rung)
    before = first_rung // 2 * every
    due = (before, *at_rungs) if 0 < before < at_rungs[0] else at_rungs
    per_step = SHARE / (1 - SHARE) * _STEP_PASSES * batch_size
    since = zip(due, (0, *due), strict=False)
    paid = [(step, round((step - last) * per_step)) for step, last in since]
    begin, gap = at_rungs[0], _FIRST_RUNG * every
    if has_best and begin < steps:
        between = sorted({*at_rungs[1:-1], *range(begin + gap, steps - every, gap)})
        even = round((steps - begin) * per_step / max(1, len(between)))
        paid = [*(pair for pair in paid if pair[0] <= begin), *((step, even) for step in between), (steps, rows)]
    return (*((step, min(rows, max(LEAST_ROWS, some))) for step, some in paid[:-1]), (steps, rows))


def measured_rows(spec: SweepSpec, rows: int) -> int:
    """Evaluation rows that a full trial is measured on, all its measurements together; rows: in a whole evaluation."""
    if spec.search.evaluations:
        return sum(used for _, used in spec.search.evaluations)
    return -(-spec.search.steps // spec.search.evaluate_every) * rows


def whole_evaluation(spec: SweepSpec, inputs: Inputs) -> int:
    """Rows of a measurement that leaves none out: `evaluate_rows`, or all validation rows."""
    return min(inputs.prepared.rows["validation"], spec.task.evaluate_rows or sys.maxsize)


def in_words(search: SearchSettings) -> str:
    """When a trial is measured: `at steps 10, 20, 40, 80 (on 32, 32, 64, 160 rows)`, or `every 10`."""
    if not search.evaluations:
        return f"every {search.evaluate_every}"
    steps, rows = (", ".join(map(str, each)) for each in zip(*search.evaluations, strict=True))
    return f"at steps {steps} (on {rows} rows)"


def _written(spec: SweepSpec) -> int:
    """Steps between measurements by the file; of a study that has recorded none, EVALUATE_EVERY if it says nothing."""
    return EVALUATE_EVERY if spec.search.evaluations is None else spec.search.evaluate_every
