"""Optuna's storage for a driver that outlasts an outage of its database.

Every call is repeated while the database is away. Most calls may simply be done twice. Three may not, since their
commit can have succeeded although its answer was lost: creating a trial, changing a trial's state, and giving it a
parameter. What became of them is read from the database, which is certain because the holder of the lease is the only
writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState

from automl.storage.optuna_passing import passed_on
from automl.storage.retry import Retry
from automl.trial import StopReason

T = TypeVar("T")


class RetryingStorage(BaseStorage):
    """The storage `inner` (cached as Optuna does it), patient. For the one driver of a study.

    verify: raises LeaseLostError if the lease was taken over. Asked when a trial was ended by somebody else, which is
    how a driver that was stopped for long may learn of it before its first commit is refused.
    """

    def __init__(self, inner: RDBStorage, retry: Retry, verify: Callable[[], None]) -> None:
        self._inner = inner
        self._cached = get_storage(inner)
        self._retry = retry
        self._verify = verify

    def __reduce__(self) -> Any:
        raise TypeError("the driver's storage is not pickled: only the driver writes")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """The new trial's id; exactly one trial is created, whatever happens to the connection."""
        if not self._retry.seconds:
            return self._cached.create_new_trial(study_id, template_trial)
        number = self._call(lambda: self._inner.get_n_trials(study_id))
        attempts = 0

        def create() -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1 or self._inner.get_n_trials(study_id) == number:
                created = self._cached.create_new_trial(study_id, template_trial)
                if self._cached.get_trial_number_from_id(created) == number:
                    return created
            self._drop_after(study_id, number)
            return self._inner.get_trial_id_from_study_id_trial_number(study_id, number)

        return self._call(create)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        attempts = 0

        def change() -> bool:
            nonlocal attempts
            attempts += 1
            if attempts > 1 and self._inner.get_trial(trial_id).state == state:
                return True  # committed, but the answer was lost
            return self._cached.set_trial_state_values(trial_id, state, values)

        return self._call(change)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        attempts = 0

        def change() -> None:
            nonlocal attempts
            attempts += 1
            if attempts > 1 and param_name in self._inner.get_trial(trial_id).params:
                return  # committed, but the answer was lost
            self._cached.set_trial_param(trial_id, param_name, param_value_internal, distribution)

        self._call(change)

    create_new_study = passed_on(BaseStorage.create_new_study)
    delete_study = passed_on(BaseStorage.delete_study)
    set_study_user_attr = passed_on(BaseStorage.set_study_user_attr)
    set_study_system_attr = passed_on(BaseStorage.set_study_system_attr)
    get_study_id_from_name = passed_on(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = passed_on(BaseStorage.get_study_name_from_id)
    get_study_directions = passed_on(BaseStorage.get_study_directions)
    get_study_user_attrs = passed_on(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = passed_on(BaseStorage.get_study_system_attrs)
    get_all_studies = passed_on(BaseStorage.get_all_studies)
    get_trial_id_from_study_id_trial_number = passed_on(BaseStorage.get_trial_id_from_study_id_trial_number)
    get_trial_number_from_id = passed_on(BaseStorage.get_trial_number_from_id)
    get_trial_param = passed_on(BaseStorage.get_trial_param)
    set_trial_intermediate_value = passed_on(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = passed_on(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = passed_on(BaseStorage.set_trial_system_attr)
    get_trial = passed_on(BaseStorage.get_trial)
    get_all_trials = passed_on(BaseStorage.get_all_trials)
    get_n_trials = passed_on(BaseStorage.get_n_trials)
    get_best_trial = passed_on(BaseStorage.get_best_trial)

    def remove_session(self) -> None:
        self._inner.remove_session()

    def _drop_after(self, study_id: int, number: int) -> None:
        """Close trials that Optuna's own repetition of a lost commit has created beside the one wanted."""
        for extra in range(number + 1, self._inner.get_n_trials(study_id)):
            trial_id = self._inner.get_trial_id_from_study_id_trial_number(study_id, extra)
            if not self._inner.get_trial(trial_id).state.is_finished():
                self._cached.set_trial_user_attr(trial_id, "stop_reason", StopReason.LOST.value)
                self._cached.set_trial_state_values(trial_id, TrialState.FAIL)

    def _pass_on(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._call(partial(getattr(self._cached, method), *arguments, **named))

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return self._retry.call(work, self._inner.remove_session)
        except UpdateFinishedTrialError:
            self._verify()
            raise
