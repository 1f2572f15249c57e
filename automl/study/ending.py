"""What is kept of a trial that ends: its state in Optuna, its objectives, its user attributes."""

from __future__ import annotations

from typing import Any, NamedTuple

from automl.space.coordinate import searched_rate
from automl.space.satisfiable import Derive
from automl.space.spec import SearchSettings
from automl.study.feasibility import NOT_MEASURED, Feasibility
from automl.study.open_trials import OpenTrial
from automl.study.outcome import CONSTRAINT_OF, MEASURED, STATE_OF, STOP_REASON, TRAINED_RATE
from automl.study.retention import ADAPTER
from automl.trial import FORGETTING, LONGEST_TRACEBACK, Measurement, StopReason, TrialState


class Missed(NamedTuple):
    """What the last measurement of a trial misses, in words, and by how much."""

    text: str
    by: float


def missed_at_end(
    opened: OpenTrial, reason: StopReason, settings: SearchSettings, feasibility: Feasibility
) -> Missed | None:
    """Why a trial that was trained to its end does not count after all; None if it does, or ends for another reason."""
    is_over = opened.last is not None and opened.is_over(settings.steps)
    if not is_over or reason not in (StopReason.FINISHED, StopReason.INFEASIBLE):
        return None
    if settings.also_minimize == FORGETTING and FORGETTING not in opened.worth:
        return Missed(f"{FORGETTING} could not be measured", NOT_MEASURED)
    found = feasibility.missed(opened.params, opened.worth)
    if found is None:
        return None
    value = opened.worth.get(FORGETTING)
    told = "could not be measured" if value is None else f"is {value:.4g}"
    return Missed(f"violates {found[0].expression!r}: {FORGETTING} {told}", found[1])


def violations_of(reason: StopReason, missed: Missed | None) -> dict[str, float]:
    """Optuna's constraints that a trial with this end violates, and by how much."""
    if missed is not None:
        return {MEASURED: missed.by}
    return {CONSTRAINT_OF[reason]: 1.0} if reason in CONSTRAINT_OF else {}


def state_of(opened: OpenTrial, reason: StopReason, settings: SearchSettings, *, is_wanted: bool) -> TrialState:
    """State that the trial gets. is_wanted: whether the number of trials leaves room for it to count."""
    if reason is StopReason.BUDGET and (not opened.seen or not is_wanted):
        return TrialState.FAIL
    if reason is StopReason.BUDGET and settings.also_minimize is not None:
        return TrialState.FAIL  # TPE (Optuna 5.0) cannot rank a PRUNED trial that is feasible among two objectives
    if reason is StopReason.INFEASIBLE and opened.is_over(settings.steps):
        return TrialState.PRUNED  # it was trained, and samplers learn from what it violates
    return STATE_OF[reason]


def objectives_of(opened: OpenTrial, last: Measurement, metric: str, second: str | None, derive: Derive) -> list[float]:
    """The objectives of a trial that was trained to its end: the metric, and what is minimised beside it."""
    match second:
        case None:
            return [opened.worth[metric]]
        case "seconds":
            return [last.metrics[metric], last.seconds]
        case "forgetting":
            return [last.metrics[metric], last.metrics[FORGETTING]]
        case name:
            return [last.metrics[metric], float(derive(opened.hyper)[name])]


def attributes_of(opened: OpenTrial, reason: StopReason, error: str, derive: Derive) -> dict[str, Any]:
    """User attributes of an ended trial, the reason last: a trial that has it is ended by whoever adopts it."""
    attributes: dict[str, Any] = {**opened.work._asdict()} if opened.last is not None or any(opened.work) else {}
    if reason is not StopReason.LOST:
        attributes.update(derive(opened.hyper))
    rate = searched_rate(opened.params)
    if rate is not None and rate != opened.hyper.learning_rate:
        attributes[TRAINED_RATE] = opened.hyper.learning_rate
    if opened.last is not None:
        attributes["seconds"] = opened.last.seconds
        if opened.last.step != opened.reached:
            attributes["steps"] = opened.last.step
        if FORGETTING in opened.worth:
            attributes[FORGETTING] = opened.worth[FORGETTING]
        if opened.last.adapter is not None:
            attributes[ADAPTER] = opened.last.adapter
    if opened.worker is not None:
        attributes["worker"] = opened.worker
    if error:
        attributes["error"] = error[-LONGEST_TRACEBACK:]
    return {**attributes, STOP_REASON: str(reason)}
