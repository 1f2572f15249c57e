"""Optuna's storage over our connections: the one place in `storage/` that imports Optuna."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL

from automl.errors import StorageError
from automl.storage.connect import Guard, engine_arguments, public_url, storage_errors
from automl.storage.url import mask_url

_WRITING = ("INSERT", "UPDATE", "DELETE")
_WROTE = "automl_wrote"


def open_storage(url: URL, *, read_only: bool = False, guard: Guard | None = None) -> RDBStorage:
    """Optuna's storage on a database whose tables exist.

    guard is called in each transaction that writes, before its commit; what it raises (LeaseLostError) prevents it.
    Raises StorageError if the tables belong to another version of Optuna.
    """
    with storage_errors(url, "open Optuna's tables"):
        storage = _storage(url, skip_table_creation=True, skip_compatibility_check=True, read_only=read_only)
    try:
        _check_version(storage, url)
    except BaseException:
        _close(storage)
        raise
    if guard is not None:
        _guard_commits(storage.engine, guard)
    return storage


def load_study(url: URL, name: str) -> optuna.Study:
    """Optuna's own view of a study, to read from; it holds connections of its own until it is collected."""
    storage = open_storage(url, read_only=True)
    return optuna.load_study(study_name=name, storage=storage)


def _check_version(storage: RDBStorage, url: URL) -> None:
    with storage_errors(url, "open Optuna's tables"):
        found, known = storage.get_current_version(), storage.get_head_version()
    if found != known:
        hint = f"run `automl db upgrade` (or update Optuna, if {found} is newer)"
        raise StorageError(f"{mask_url(url)}: Optuna's tables are at {found}, this Optuna needs {known}; {hint}")


def create_tables(url: URL, *, new_file: bool = False) -> None:
    """Create what is missing of Optuna's tables. Not safe against a simultaneous call: the caller holds a lock.

    new_file: the SQLite file may be created.
    """
    storage = _storage(url, create=new_file)
    _close(storage)


def upgrade_tables(url: URL) -> None:
    """Bring Optuna's tables to the version of the installed Optuna."""
    # Optuna's migrations connect by URL, so this one storage, which lives no longer than the call, knows the password.
    storage = RDBStorage(_template(url.render_as_string(hide_password=False)), skip_compatibility_check=True)
    try:
        with _logging_left_alone():
            storage.upgrade()
    finally:
        _close(storage)


def fail_trials(url: URL, trial_ids: Sequence[int], stop_reason: str, guard: Guard) -> None:
    """Tell RUNNING trials FAIL, with the reason as user attribute `stop_reason`; guard as for `open_storage`."""
    storage = open_storage(url, guard=guard)
    try:
        with storage_errors(url, "fail trials"):
            for trial_id in trial_ids:
                storage.set_trial_user_attr(trial_id, "stop_reason", stop_reason)
                storage.set_trial_state_values(trial_id, TrialState.FAIL)
    finally:
        _close(storage)


def head_revision(url: URL) -> str:
    """Newest revision of Optuna's tables that the installed Optuna knows; the database must be open to it."""
    storage = _storage(url, skip_table_creation=True, skip_compatibility_check=True, read_only=True)
    try:
        return storage.get_head_version()
    finally:
        _close(storage)


def _storage(url: URL, *, read_only: bool = False, create: bool = False, **options: Any) -> RDBStorage:
    arguments = engine_arguments(url, read_only=read_only, create=create)
    return RDBStorage(_template(public_url(url).render_as_string()), engine_kwargs=arguments, **options)


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def _template(url: str) -> str:
    """RDBStorage applies `str.format` to its URL, so braces in a file name are doubled."""
    return url.replace("{", "{{").replace("}", "}}")


def _guard_commits(engine: Engine, guard: Guard) -> None:
    """Call the guard in every transaction that has written, last before its commit; an error prevents the commit."""

    def note(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(_WRITING):
            connection.info[_WROTE] = True

    def check(connection: Connection) -> None:
        if connection.info.pop(_WROTE, False):
            guard(connection)

    def forget(connection: Connection) -> None:
        if not connection.invalidated:  # a lost connection has forgotten it already
            connection.info.pop(_WROTE, None)

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "commit", check)
    event.listen(engine, "rollback", forget)


@contextmanager
def _logging_left_alone() -> Iterator[None]:
    """Optuna's migrations configure the root logger, and disable all others, if it has no handler."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
