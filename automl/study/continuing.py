"""Whether a study that is in the database can go on with what is asked for now. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from automl.errors import SpaceChangedError
from automl.metric import METRICS, Direction
from automl.space.coordinate import in_words
from automl.space.length import STEP_ROWS, grid_of
from automl.space.spec import SearchSettings, SearchSpace, SweepSpec
from automl.study.distributions import check_compatible
from automl.study.outcome import STOP_REASON

OURS = "space_sha256"
"""User attribute of every study that this program has begun."""

AT_ALPHA = "at_alpha"
"""User attribute: the alphas at which learning rates are searched; missing where they are searched as they are."""


def refuse_unfit(
    storage: BaseStorage, name: str, *, space: SearchSpace, objectives: Sequence[str], directions: Sequence[Direction]
) -> None:
    """Raise SpaceChangedError if the study was made by other code, or what it holds cannot go on like this.

    objectives, directions: what is wanted, the first of them first. A study that does not exist yet is fine.
    """
    try:
        stored = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler(), pruner=NopPruner())
    except KeyError:
        return
    trials = stored.get_trials(deepcopy=False)
    _refuse_foreign(stored, trials)
    _refuse_other_objectives(stored, trials, objectives, directions)
    _refuse_other_coordinate(stored, trials, space)
    check_compatible(space, {key: value for trial in trials for key, value in trial.distributions.items()})


def scales_of(search: SearchSettings, space: SearchSpace, told: Mapping[str, Any]) -> dict[str, str]:
    """What is said of a study whose steps or learning rates are not those of its trials; mostly nothing.

    told: user attributes of the study. What a file said that has changed before any trial is taken back, by an empty
    text.
    """
    at_alpha = in_words(space)
    said = {**grid_of(search, space), **({AT_ALPHA: at_alpha} if at_alpha else {})}
    return {**{key: "" for key in (STEP_ROWS, AT_ALPHA) if told.get(key)}, **said}


def objectives_of(spec: SweepSpec) -> tuple[list[str], list[Direction]]:
    """Names and directions of what a search is for: the metric, and what is minimised beside it."""
    second = spec.search.also_minimize
    names, directions = [spec.task.metric], [METRICS[spec.task.metric].direction]
    return (names, directions) if second is None else ([*names, second], [*directions, "minimize"])


def _refuse_foreign(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    strange = [trial.number for trial in trials if trial.state.is_finished() and STOP_REASON not in trial.user_attrs]
    if strange or (trials and OURS not in study.user_attrs):
        number = strange[0] if strange else trials[0].number
        raise SpaceChangedError(
            f"study {study.study_name!r} in this database holds trials that automl has not made (trial {number});"
            " choose another study name"
        )


def _refuse_other_coordinate(study: optuna.Study, trials: Sequence[FrozenTrial], space: SearchSpace) -> None:
    before, now = study.user_attrs.get(AT_ALPHA, ""), in_words(space)
    if trials and before != now:
        said = " and ".join(f"at alpha ({each})" if each else "as they are trained" for each in (before, now))
        raise SpaceChangedError(
            f"study {study.study_name!r} cannot search learning rates {said}: its values would mean other rates;"
            " choose another study name"
        )


def _refuse_other_objectives(
    study: optuna.Study, trials: Sequence[FrozenTrial], objectives: Sequence[str], directions: Sequence[Direction]
) -> None:
    stored = [direction.name.lower() for direction in study.directions]
    if len(stored) != len(directions):
        here, wanted = ("one objective", "two") if len(stored) == 1 else ("two objectives", "one")
        raise SpaceChangedError(
            f"study {study.study_name!r} has {here}, not {wanted} (search.also_minimize); choose another study name"
        )
    if stored != list(directions):
        raise SpaceChangedError(
            f"study {study.study_name!r} is there to {stored[0]} its objective, not to {directions[0]} it;"
            " choose another study name"
        )
    names = study.metric_names
    if trials and names is not None and list(names) != list(objectives):
        raise SpaceChangedError(
            f"study {study.study_name!r} is about {' and '.join(names)}, not about {' and '.join(objectives)};"
            " choose another study name"
        )
