"""Opening a study that may hold trials already: what it says of itself, what an earlier driver left, what it is given.

Reads and writes Optuna's study; what becomes of a trial is for the one decider, `automl.study.study`, to carry out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from automl.space.assemble import active_parameters, assemble
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.base import Attempt, AttemptState, ResultStore
from automl.study.checkpoints import remember
from automl.study.distributions import suggest
from automl.study.enqueueing import FIXED, WARM_START, lent, missing
from automl.study.feasibility import Feasibility
from automl.study.open_trials import OpenTrial
from automl.study.outcome import STOP_REASON
from automl.study.warm_start import WARM_TRIALS
from automl.trial import Scalar, StopReason

_ENQUEUED = "enqueued"


class Ending(NamedTuple):
    """How a trial ends, with what is said of it."""

    reason: StopReason
    detail: str = ""
    error: str = ""


def describe(study: optuna.Study, about: Mapping[str, str], objectives: Sequence[str]) -> None:
    """Say in Optuna's tables what the study is about, where its dashboard shows it; writes only what is new."""
    told = study.user_attrs
    for key, value in about.items():
        if told.get(key) != value:
            study.set_user_attr(key, value)
    if study.metric_names != list(objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(objectives))


def left_running(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were in progress when an earlier driver ended."""
    return [trial for trial in trials if trial.state is OptunaState.RUNNING]


def reopen(study: optuna.Study, frozen: FrozenTrial, space: SearchSpace) -> OpenTrial:
    """A RUNNING trial as Optuna knows it."""
    trial = optuna.Trial(study, frozen._trial_id)
    params: Mapping[str, Scalar] = {name: frozen.params[name] for name in _names(space) if name in frozen.params}
    if FIXED in frozen.system_attrs:
        params = suggest(trial, space)  # an enqueued trial keeps its values, whenever the driver was killed
    opened = OpenTrial(
        trial=trial,
        params=params,
        hyper=assemble(space, params),
        seen=set(frozen.intermediate_values),
        reached=frozen.last_step or 0,
    )
    remember(opened, frozen)
    return opened


def ending_of(frozen: FrozenTrial, opened: OpenTrial, space: SearchSpace) -> Ending | None:
    """How a trial must end that was left RUNNING: as its driver had begun to, or since the space does not fit it."""
    reason = frozen.user_attrs.get(STOP_REASON)
    if reason is not None:
        return Ending(StopReason(reason), error=frozen.user_attrs.get("error", ""))
    if any(parameter.name not in opened.params for parameter in active_parameters(space, opened.params)):
        return Ending(StopReason.LOST)
    gone = [name for name in frozen.params if name not in _names(space)]
    if gone:
        return Ending(StopReason.INFEASIBLE, detail=f"{gone[0]!r} is not searched any more")
    return None


def was_parked(attempts: Sequence[Attempt]) -> bool:
    """Whether a trial with these attempts was paused when its driver ended."""
    return bool(attempts) and attempts[-1].state is AttemptState.PARKED


def enqueue(
    study: optuna.Study,
    store: ResultStore,
    space: SearchSpace,
    trials: Sequence[FrozenTrial],
    settings: SearchSettings,
    feasibility: Feasibility,
    *,
    room: int,
) -> int:
    """Enqueue what the study is given and has not got yet, at most `room` trials; returns how many they were.

    That is `enqueue:` of the space file, then what the study `warm_start` lends, then the best of each study to learn
    from; one that is enqueued anyway is not trained twice. trials: the study's, as they were found. feasibility:
    tells what of them was refused and would be started now. Raises ConfigError if there is no study `warm_start`.
    """
    listed = missing(space.enqueue, trials, feasibility.may_start)[:room]
    _add(study, listed, {_ENQUEUED: True})
    count = len(listed)
    for earlier, most in _earlier(settings):
        borrowed = lent(study._storage, store, earlier, space, trials)[:most]
        fresh = missing(borrowed, study.get_trials(deepcopy=False), feasibility.may_start)[: room - count]
        _add(study, fresh, {WARM_START: earlier})
        count += len(fresh)
    return count


def _earlier(settings: SearchSettings) -> Iterator[tuple[str, int]]:
    """Studies that lend configurations, and how many of them at most."""
    if settings.warm_start is not None:
        yield settings.warm_start, WARM_TRIALS
    yield from ((name, 1) for name in settings.learn_from or () if name != settings.warm_start)


def _add(study: optuna.Study, configurations: Iterable[Mapping[str, Scalar]], attributes: Mapping[str, Any]) -> None:
    for params in configurations:
        study.enqueue_trial(dict(params), user_attrs=dict(attributes))


def _names(space: SearchSpace) -> tuple[str, ...]:
    return tuple(parameter.name for parameter in space.parameters)
