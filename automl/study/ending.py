"""What is kept of a trial that ends: its state in Optuna, its objectives, its user attributes."""

from __future__ import annotations

from typing import Any

from automl.space.satisfiable import Derive
from automl.space.spec import SearchSettings
from automl.study.open_trials import OpenTrial
from automl.study.outcome import STATE_OF, STOP_REASON
from automl.study.retention import ADAPTER
from automl.trial import LONGEST_TRACEBACK, Measurement, StopReason, TrialState


def state_of(opened: OpenTrial, reason: StopReason, settings: SearchSettings, *, is_wanted: bool) -> TrialState:
    """State that the trial gets. is_wanted: whether the number of trials leaves room for it to count."""
    if reason is StopReason.BUDGET and (not opened.seen or not is_wanted):
        return TrialState.FAIL
    if reason is StopReason.BUDGET and settings.also_minimize is not None:
        return TrialState.FAIL  # TPE (Optuna 5.0) cannot rank a PRUNED trial that is feasible among two objectives
    return STATE_OF[reason]


def objectives_of(opened: OpenTrial, last: Measurement, metric: str, second: str | None, derive: Derive) -> list[float]:
    """The objectives of a trial that was trained to its end: the metric, and what is minimised beside it."""
    match second:
        case None:
            return [last.metrics[metric]]
        case "seconds":
            return [last.metrics[metric], last.seconds]
        case name:
            return [last.metrics[metric], float(derive(opened.hyper)[name])]


def attributes_of(opened: OpenTrial, reason: StopReason, error: str, derive: Derive) -> dict[str, Any]:
    """User attributes of an ended trial, the reason last: a trial that has it is ended by whoever adopts it."""
    attributes: dict[str, Any] = {}
    if reason is not StopReason.LOST:
        attributes.update(derive(opened.hyper))
    if opened.last is not None:
        attributes |= {"seconds": opened.last.seconds, "tokens": opened.last.tokens}
        if opened.last.adapter is not None:
            attributes[ADAPTER] = opened.last.adapter
    if opened.worker is not None:
        attributes["worker"] = opened.worker
    if error:
        attributes["error"] = error[-LONGEST_TRACEBACK:]
    return {**attributes, STOP_REASON: str(reason)}
