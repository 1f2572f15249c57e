"""What a trial is worth that trains no further: its best checkpoint, measured once more on all rows.

Measurements on the way may be of fewer rows, and leave out what is wanted beside the metric. So the candidate that they
name is measured like a last step, and takes the last one's place only if it is better on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from automl.training.early_stopping import best_of, loss_of, reason_to_stop
from automl.training.state import TrainState
from automl.trial import BestCheckpoint, Measurement, TrialSpec


def is_over(measurements: Sequence[Measurement]) -> bool:
    """Whether a trial with these measurements has been settled: it trains no further, whatever its step."""
    return bool(measurements) and measurements[-1].best is not None


def is_at_end(spec: TrialSpec, measurements: Sequence[Measurement]) -> bool:
    """Whether the trial trains no further after its newest measurement."""
    return measurements[-1].step >= spec.last_step or bool(reason_to_stop(spec, measurements))


def settled(
    spec: TrialSpec,
    measurements: Sequence[Measurement],
    state: TrainState,
    *,
    saved: Callable[[int], TrainState | None],
    go_back: Callable[[TrainState], None],
    measure: Callable[[], Measurement],
) -> Measurement:
    """The last measurement of a trial that trains no further, with its best checkpoint, where it stands afterwards.

    state: where it stands now. saved: a state of an earlier step, None if it cannot be read. go_back: lets the trial
    stand where a state was taken. measure: measures it there, as at a last step. Raises what that raises.
    """
    last = measurements[-1]
    if not spec.best_by:
        return last
    reason = reason_to_stop(spec, measurements)
    found = None
    earlier = best_of(spec, measurements[:-1])
    if earlier is not None and (reason or _may_be_better(spec, earlier, last)):
        start = saved(earlier.step)
        if start is not None or reason:  # a trial that ends itself was not measured on all rows where it is
            go_back(start or state)
            found = measure()
    if found is not None and not reason and loss_of(spec, found) >= loss_of(spec, last):
        go_back(state)
        found = None
    best = found or last
    worth = BestCheckpoint(step=best.step, metrics=best.metrics, reason=reason)
    return replace(last, importances=best.importances, best=worth)


def _may_be_better(spec: TrialSpec, earlier: Measurement, last: Measurement) -> bool:
    """Whether it is worth another look: it was measured on fewer rows than the last one, or is better."""
    rows = spec.rows_at(earlier.step)
    is_whole = rows is None or rows == spec.rows_at(last.step)
    return not is_whole or loss_of(spec, earlier) < loss_of(spec, last)
