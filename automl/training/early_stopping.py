"""Which evaluation of a trial is its best, and whether training it on brings nothing. Pure functions of its curve.

A worker decides this by the trial's own measurements, which its slot file holds, so a resumed trial ends where the
undisturbed one does. Values are compared only if they were measured on the same rows: one on more rows begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from automl.metric import METRICS
from automl.trial import Measurement, TrialSpec


class Limits(NamedTuple):
    """From where on a trial may end itself.

    patience: evaluations without a better value.
    share: of a full trial's steps that must have passed since its best evaluation besides.
    learnt: share of the first training loss below which a fall of it is none.
    risen: share by which the training loss must be above that of the best evaluation for a trial to diverge.
    """

    patience: int = 2
    share: float = 1 / 6
    learnt: float = 0.02
    risen: float = 0.1


LIMITS = Limits()

_SINCE_WHEN_FLAT = 1 / 3
"""Share of its steps before which no trial is called flat: the learning rate may still be warming up."""

_LOSS = "loss"


def best_of(spec: TrialSpec, measurements: Sequence[Measurement]) -> Measurement | None:
    """The best evaluation, the earliest of equals; None if there is none, or if only the last one counts."""
    best: Measurement | None = None
    for item in measurements:
        if spec.best_by in item.metrics and (best is None or _is_better(spec, item, best)):
            best = item
    return best


def steps_to_keep(spec: TrialSpec, measurements: Sequence[Measurement]) -> set[int]:
    """Steps whose states must stay on disk beside the newest two, so that either of these knows its best one."""
    found = (best_of(spec, measurements), best_of(spec, measurements[:-1]))
    return {item.step for item in found if item is not None}


def reason_to_stop(spec: TrialSpec, measurements: Sequence[Measurement], limits: Limits = LIMITS) -> str:
    """Why the trial should end at its newest measurement, in words; empty if it should go on.

    It overfits if the training loss falls while the metric, and the loss on the evaluation rows where that is measured
    besides, are worse than at its best evaluation; it diverges if the training loss has come back to where it began;
    it is flat if nothing was learnt. Each only after so many evaluations, and such a share of its steps, without a
    better value.
    """
    best = best_of(spec, measurements) if spec.early_stopping else None
    if best is None or measurements[-1].step >= spec.last_step:
        return ""
    since = [item for item in measurements if item.step > best.step and _rows(spec, item) == _rows(spec, best)]
    now, first = measurements[-1], measurements[0].training_loss
    if len(since) < limits.patience or since[-1] is not now or now.step - best.step < limits.share * spec.steps:
        return ""
    then = best.training_loss
    if first is None or then is None or now.training_loss is None:
        return ""
    if now.training_loss > then + limits.risen * abs(then) and now.training_loss >= first - limits.learnt * abs(first):
        return f"diverges since step {best.step}"
    if now.training_loss < then and all(_is_worse(spec, item, best) for item in since[-limits.patience :]):
        return f"overfits since step {best.step}"
    lowest = min(item.training_loss for item in measurements if item.training_loss is not None)
    if lowest > first - limits.learnt * abs(first) and now.step >= _SINCE_WHEN_FLAT * spec.steps:
        return f"flat since step {best.step}"
    return ""


def _is_better(spec: TrialSpec, item: Measurement, best: Measurement) -> bool:
    """Whether it takes the place of the best one so far."""
    rows, before = _rows(spec, item), _rows(spec, best)
    return rows > before or (rows == before and loss_of(spec, item) < loss_of(spec, best))


def _is_worse(spec: TrialSpec, item: Measurement, best: Measurement) -> bool:
    is_worse = loss_of(spec, item) > loss_of(spec, best)
    return is_worse and (_LOSS not in best.metrics or item.metrics[_LOSS] > best.metrics[_LOSS])


def loss_of(spec: TrialSpec, item: Measurement) -> float:
    """The metric by which the trial is judged; smaller is better."""
    return METRICS[spec.best_by].loss(item.metrics[spec.best_by])


def _rows(spec: TrialSpec, item: Measurement) -> float:
    rows = spec.rows_at(item.step)
    return float("inf") if rows is None else rows
