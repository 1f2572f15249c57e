"""Optuna's storage as the holder of a study's lease may use it: what it has written need not be read.

Optuna's own cache reads every unfinished trial again at each look, since another process may have changed it. Nobody
does here, and a policy that parks trials keeps hundreds of them unfinished: with 200 of them it took a second to
propose the next one.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from automl.storage.optuna_passing import passed_on


class CachedStorage(BaseStorage):
    """The storage `inner`, whose trials nobody else changes. Every write goes to `inner` at once; not thread-safe.

    Keeps all trials of the studies it was asked about in memory. What `get_all_trials` returns with deepcopy=False must
    not be changed; a later write makes a new object.
    """

    def __init__(self, inner: BaseStorage) -> None:
        self._inner = inner
        self._trials: dict[int, dict[int, FrozenTrial]] = {}  # study id -> trial id -> trial, ascending
        self._stale: dict[int, int] = {}  # trial id -> study id
        self._study_of: dict[int, int] = {}

    def __reduce__(self) -> Any:
        raise TypeError("the driver's storage is not pickled: only the driver writes")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = self._inner.create_new_trial(study_id, template_trial)
        self._study_of[trial_id] = self._stale[trial_id] = study_id
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._inner.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        value = distribution.to_external_repr(param_value_internal)
        self._note(trial_id, params=(param_name, value), distributions=(param_name, distribution))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        study_id = self._study_of.get(trial_id)
        if study_id is not None:  # read again: the database sets the times
            self._stale[trial_id] = study_id
        return self._inner.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._inner.set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._note(trial_id, intermediate_values=(step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._inner.set_trial_user_attr(trial_id, key, value)
        self._note(trial_id, user_attrs=(key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._inner.set_trial_system_attr(trial_id, key, value)
        self._note(trial_id, system_attrs=(key, value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        study_id = self._study_of.get(trial_id)
        if study_id is None:
            return self._inner.get_trial(trial_id)
        return copy.deepcopy(self._known(study_id)[trial_id])  # Optuna's Trial writes into what it gets

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._known(study_id).values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _note(self, trial_id: int, **entries: tuple[Any, Any]) -> None:
        """Keep what was just written: one new entry in each of these dictionaries of the trial."""
        study_id = self._study_of.get(trial_id)
        if study_id is None or trial_id in self._stale:
            return
        changed = copy.copy(self._trials[study_id][trial_id])
        for name, (key, value) in entries.items():
            setattr(changed, name, {**getattr(changed, name), key: value})
        self._trials[study_id][trial_id] = changed

    def _known(self, study_id: int) -> dict[int, FrozenTrial]:
        if study_id not in self._trials:
            trials = self._inner.get_all_trials(study_id)
            self._trials[study_id] = {trial._trial_id: trial for trial in trials}
            self._study_of |= dict.fromkeys(self._trials[study_id], study_id)
        known = self._trials[study_id]
        for trial_id in sorted(trial_id for trial_id, owner in self._stale.items() if owner == study_id):
            known[trial_id] = self._inner.get_trial(trial_id)
            del self._stale[trial_id]
        return known

    def delete_study(self, study_id: int) -> None:
        self._trials.pop(study_id, None)
        self._inner.delete_study(study_id)

    def _pass_on(self, method: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self._inner, method)(*arguments, **named)

    create_new_study = passed_on(BaseStorage.create_new_study)
    set_study_user_attr = passed_on(BaseStorage.set_study_user_attr)
    set_study_system_attr = passed_on(BaseStorage.set_study_system_attr)
    get_study_id_from_name = passed_on(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = passed_on(BaseStorage.get_study_name_from_id)
    get_study_directions = passed_on(BaseStorage.get_study_directions)
    get_study_user_attrs = passed_on(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = passed_on(BaseStorage.get_study_system_attrs)
    get_all_studies = passed_on(BaseStorage.get_all_studies)
