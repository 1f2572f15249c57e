"""Read-only questions about a study, for the command line and reports. Changes nothing, needs no lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from automl.errors import StudyNotFoundError
from automl.storage.base import ResultStore
from automl.trial import Scalar, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial as it is now.

    value: objective at the last measurement of an ended trial, None otherwise. size: of a complete trial, what is
    minimised beside it (`search.also_minimize`), else None. steps, seconds: trained so far, up to
    the last measurement. adapter: folder of its adapter, if that is still kept. trainable_params: LoRA and head, None
    if unknown. error: what a failed trial said last, empty otherwise.
    """

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Scalar]
    steps: int
    seconds: float
    stop_reason: str | None
    adapter: str | None
    trainable_params: int | None = None
    error: str = ""
    size: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """Totals of a study. seconds: training time of all trials."""

    counts: Mapping[TrialState, int]
    best: TrialRow | None
    steps: int
    seconds: float


def list_trials(storage: BaseStorage, study_name: str, store: ResultStore | None = None) -> list[TrialRow]:
    """All trials by number, those waiting to be started left out. Raises StudyNotFoundError.

    With `store`, the time of running trials and which adapters are still kept are known too.
    """
    study = _load(storage, study_name)
    seconds = {m.trial: m.seconds for m in store.measurements()} if store else {}
    adapters = {artifact.trial: artifact.path for artifact in store.artifacts()} if store else None
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not OptunaState.WAITING]
    return [_row(trial, seconds.get(trial.number, 0.0), adapters) for trial in trials]


def summary(storage: BaseStorage, study_name: str, store: ResultStore | None = None) -> StudySummary:
    """Totals and the best COMPLETE trial. Raises StudyNotFoundError."""
    rows = list_trials(storage, study_name, store)
    sign = -1.0 if _load(storage, study_name).directions[0] is StudyDirection.MAXIMIZE else 1.0
    complete = [
        (sign * row.value, row.size or 0.0, row.number, row)
        for row in rows
        if row.state is TrialState.COMPLETE and row.value is not None
    ]
    counted = Counter(row.state for row in rows)
    return StudySummary(
        counts={state: counted[state] for state in TrialState},
        best=min(complete)[3] if complete else None,
        steps=sum(row.steps for row in rows),
        seconds=sum(row.seconds for row in rows),
    )


def _load(storage: BaseStorage, name: str) -> optuna.Study:
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler(), pruner=NopPruner())
    except KeyError:
        known = ", ".join(sorted(study.study_name for study in storage.get_all_studies())) or "none"
        raise StudyNotFoundError(f"no study {name!r} in the database; there is: {known}") from None


def _row(trial: FrozenTrial, seconds: float, adapters: Mapping[int, str] | None) -> TrialRow:
    attributes = trial.user_attrs
    return TrialRow(
        number=trial.number,
        state=TrialState(trial.state.name),
        value=_value(trial),
        params=trial.params,
        steps=trial.last_step or 0,
        seconds=attributes.get("seconds", seconds),
        stop_reason=attributes.get("stop_reason"),
        adapter=attributes.get("adapter") if adapters is None else adapters.get(trial.number),
        trainable_params=int(attributes["trainable_params"]) if "trainable_params" in attributes else None,
        error=str(attributes.get("error", "")),
        size=trial.values[1] if trial.state is OptunaState.COMPLETE and len(trial.values) > 1 else None,
    )


def _value(trial: FrozenTrial) -> float | None:
    """The first objective; of a pruned trial its last value, which Optuna takes over only if there is no second."""
    if trial.state is OptunaState.PRUNED and trial.last_step is not None:
        return trial.intermediate_values[trial.last_step]
    return trial.values[0] if trial.state.is_finished() and trial.values else None
