"""What the database holds against a space file, told before anything is prepared: the study to start from, and ours."""

from __future__ import annotations

from automl.errors import ConfigError, Problem, StorageError
from automl.setup.changing import advise, hindrance
from automl.space.defaults import resolve
from automl.space.spec import SweepSpec
from automl.storage.sql import Database, database_status, open_database
from automl.study.enqueueing import has_to_borrow
from automl.study.warm_start import best_of_earlier


def database_remarks(spec: SweepSpec) -> list[str]:
    """Read the database that the file names, if there is one, and say what a search would meet there.

    Nothing is written. Raises ConfigError if the study to start from is not there; a database that cannot be read is
    remarked on.
    """
    try:
        if not database_status(spec.storage_url).exists:
            return _without_database(spec)
        with open_database(spec.storage_url, create=False, read_only=True) as database:
            return [*_changed(database, spec), *check_warm_start(database, spec)]
    except StorageError as error:
        return [f"storage: {error}"]


def check_warm_start(database: Database, spec: SweepSpec) -> list[str]:
    """What the study to start from lends, where something of it is left out. Raises ConfigError if there is none."""
    earlier = spec.search.warm_start
    storage = database.optuna_storage()
    if earlier is None or not has_to_borrow(storage, database.store(spec.study), spec.study, earlier):
        return []
    space = resolve(spec.space, model_parameters=0, steps=spec.search.steps)
    remark = best_of_earlier(storage, earlier, space).remark
    return [remark] if remark and not spec.space.auto and spec.task.type != "table" else []


def _without_database(spec: SweepSpec) -> list[str]:
    if spec.search.warm_start is not None:
        message = f"there is no study {spec.search.warm_start!r}, since there is no database yet"
        raise ConfigError([Problem(spec.source, 0, 0, "search.warm_start", message)])
    return []


def _changed(database: Database, spec: SweepSpec) -> list[str]:
    row = next((row for row in database.studies() if row.study == spec.study), None)
    if row is not None and row.runs and row.space_sha256 == spec.sha256:
        return []
    reason = hindrance(database, spec)
    if row is None or not row.runs:
        return [reason] if reason else []
    return [f"study: {spec.study!r} was started with another space, which a search refuses; {advise(database, spec)}"]
