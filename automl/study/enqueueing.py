"""Configurations that a study is given beside those it samples, and which of them it has been given already.

They are known by what they hold, never by their place in a list: a list that was edited between two runs trains nothing
twice and skips nothing, and a driver killed in between enqueues the rest when it comes back.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from automl.space.spec import SearchSpace
from automl.storage.base import ResultStore
from automl.study.outcome import STOP_REASON
from automl.study.warm_start import best_of_earlier
from automl.trial import Scalar, StopReason

logger = logging.getLogger(__name__)

WARM_START = "warm_start"
"""Event: what another study has lent, decided once. Also the attribute of trials that came of it."""

FIXED = "fixed_params"
"""System attribute in which Optuna keeps the values a trial was enqueued with."""
_NEVER_TRIED = frozenset({StopReason.BUDGET, StopReason.LOST})

Params = Mapping[str, Scalar]


def missing(
    wanted: Iterable[Params], trials: Sequence[FrozenTrial], may_start: Callable[[Params], bool] = lambda params: False
) -> list[Params]:
    """Configurations in `wanted` that the study has not got, in their order; one that is listed twice is wanted twice.

    A trial that ended before it was measured, because there was no budget for it, does not count; nor does one that was
    refused and would be started now, as where there was too little memory. may_start: whether that is so.
    """
    given = Counter(_content(trial.system_attrs[FIXED]) for trial in trials if FIXED in trial.system_attrs)
    given -= Counter(_content(trial.system_attrs[FIXED]) for trial in trials if _was_never_tried(trial, may_start))
    left = []
    for params in wanted:
        content = _content(params)
        if given[content] > 0:
            given[content] -= 1
        else:
            left.append(params)
    return left


def lent(
    storage: BaseStorage, store: ResultStore, earlier: str, space: SearchSpace, trials: Sequence[FrozenTrial]
) -> list[Params]:
    """The best configurations of the study `earlier`, as they were when this one first asked.

    What of them does not lie in the space is logged. Raises ConfigError if there is no such study.
    """
    for _, kind, detail in store.events():
        if kind == WARM_START and detail["study"] == earlier:
            return list(detail["configurations"])
    if _began_without_a_record(trials, earlier):
        return []
    loan = best_of_earlier(storage, earlier, space)
    if loan.remark:
        logger.warning(loan.remark)
    configurations = [dict(params) for params in loan.configurations]
    store.add_event(WARM_START, {"study": earlier, "configurations": configurations, "remark": loan.remark})
    return loan.configurations


def has_to_borrow(storage: BaseStorage, store: ResultStore, study: str, earlier: str) -> bool:
    """Whether `lent` would ask the study `earlier` if `study` began or went on now."""
    if any(kind == WARM_START and detail["study"] == earlier for _, kind, detail in store.events()):
        return False
    names = {known.study_name: known._study_id for known in storage.get_all_studies()}
    trials = storage.get_all_trials(names[study], deepcopy=False) if study in names else []
    return not _began_without_a_record(trials, earlier)


def _began_without_a_record(trials: Sequence[FrozenTrial], earlier: str) -> bool:
    """Whether a version that recorded nothing has made the warm start, and has gone on to sample."""
    return any(trial.user_attrs.get(WARM_START) == earlier for trial in trials) and any(
        FIXED not in trial.system_attrs for trial in trials
    )


def _was_never_tried(trial: FrozenTrial, may_start: Callable[[Params], bool]) -> bool:
    if FIXED not in trial.system_attrs or trial.state is not TrialState.FAIL or trial.intermediate_values:
        return False
    reason = trial.user_attrs.get(STOP_REASON)
    return reason in _NEVER_TRIED or (reason == StopReason.INFEASIBLE and may_start(trial.params))


def _content(params: Params) -> str:
    """The configuration as text that is the same for the same values: 8 and 8.0 are, True and 1 are not."""
    return json.dumps({name: _plain(value) for name, value in params.items()}, sort_keys=True)


def _plain(value: Scalar) -> Scalar:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
