"""What another study lends: its best configurations, as far as this space allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from automl.ranking import point
from automl.space.assemble import active_parameters, assemble
from automl.space.coordinate import coordinates
from automl.space.limits import RATE, plain
from automl.space.points import contains, snapped
from automl.space.spec import SearchSpace
from automl.study.outcome import TRAINED_RATE, direction_of
from automl.study.registry import refuse
from automl.trial import Scalar

WARM_TRIALS = 3
"""Configurations that an earlier study lends."""


class Loan(NamedTuple):
    """What another study lends: configurations, best first, as far as they lie in this space.

    remark: one line for a person about what does not, empty if all of it does.
    """

    configurations: list[Mapping[str, Scalar]]
    remark: str


def best_of_earlier(storage: BaseStorage, name: str, space: SearchSpace) -> Loan:
    """Parameters of the best COMPLETE trials of another study in the database.

    Only configurations are taken, never values: the other study may have had other data, steps or another metric, so
    they are trained again. A value outside of this space is left out, to be sampled. Raises ConfigError if there is no
    such study.
    """
    try:
        earlier = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
    except KeyError:
        known = ", ".join(sorted(study.study_name for study in storage.get_all_studies())) or "none"
        raise refuse("warm_start", f"there is no study {name!r} in the database; there is: {known}") from None
    direction = direction_of(earlier.directions[0])
    complete = earlier.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(complete, key=lambda trial: point(trial.number, trial.values, direction))
    lent: list[Mapping[str, Scalar]] = []
    outside: set[str] = set()
    for trial in ranked:
        params = dict(_fitting(trial, space))
        if len(lent) < WARM_TRIALS and params and params not in lent:
            lent.append(params)
            outside |= trial.params.keys() - params.keys()
    return Loan(lent, _remark(name, bool(ranked), len(lent), sorted(outside), space))


def _remark(earlier: str, has_complete: bool, lent: int, outside: Sequence[str], space: SearchSpace) -> str:
    if not has_complete:
        return f"warm_start: study {earlier!r} has no complete trial, so none of it is tried first"
    if not lent:
        searched = ", ".join(parameter.name for parameter in space.parameters)
        return f"warm_start: nothing of study {earlier!r} lies in this space ({searched}), so none of it is tried first"
    if outside:
        return (
            f"warm_start: {lent} configurations of study {earlier!r} are tried first, without values outside of this"
            f" space ({', '.join(outside)})"
        )
    return ""


def _fitting(trial: FrozenTrial, space: SearchSpace) -> Iterator[tuple[str, Scalar]]:
    params = _with_rate_of(trial, space)
    for parameter in active_parameters(space, params):
        value = params.get(parameter.name)
        if value is not None and contains(parameter, value):
            yield parameter.name, snapped(parameter, value)


def _with_rate_of(trial: FrozenTrial, space: SearchSpace) -> Mapping[str, Scalar]:
    """Parameters of a trial of another study, with the learning rate that means here what it was trained with there."""
    if TRAINED_RATE not in trial.user_attrs and not any(coordinates(space)):
        return trial.params
    ours = {parameter.name for parameter in space.parameters}
    known = {name: value for name, value in trial.params.items() if name in ours}
    rates = [name for name in known if plain(name) == RATE]
    return trial.params | {name: _searched(trial, name, known, space) for name in rates}


def _searched(trial: FrozenTrial, rate: str, known: Mapping[str, Scalar], space: SearchSpace) -> float:
    per_unit = assemble(space, {**known, rate: 1.0}).learning_rate
    return float(trial.user_attrs.get(TRAINED_RATE, known[rate])) / per_unit
