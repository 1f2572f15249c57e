"""Taking a whole study out of the database, Optuna's rows and ours."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from automl.errors import StudyBusyError
from automl.storage.sql import Database
from automl.storage.tables import (
    Now,
    artifacts,
    attempts,
    events,
    importances,
    measurements,
    metric_values,
    runs,
    sweeps,
    verification_scores,
    verifications,
)

_OURS = (
    verification_scores,
    verifications,
    importances,
    metric_values,
    measurements,
    artifacts,
    attempts,
    events,
    runs,
    sweeps,
)


def remove_study(database: Database, study: str) -> bool:
    """Delete every row of a study; whether there was any. Files stay. Killed in between, the same call completes it.

    Raises StudyBusyError if a driver holds the study's lease.
    """
    refuse_driven(database, study)
    removed = _remove_optunas(database, study)
    with database.writing(f"remove study {study!r}") as connection:
        counts = [connection.execute(delete(table).where(table.c.study_name == study)).rowcount for table in _OURS]
    return removed or any(counts)


def refuse_driven(database: Database, study: str) -> None:
    """Raise StudyBusyError if a driver holds the study's lease."""
    query = select(func.count()).where(sweeps.c.study_name == study, sweeps.c.lease_until > Now())
    with database.reading(f"read the lease of study {study!r}") as connection:
        if connection.execute(query).scalar_one():
            raise StudyBusyError(f"study {study!r} is being driven")


def _remove_optunas(database: Database, study: str) -> bool:
    storage = database.optuna_storage()
    try:
        storage.delete_study(storage.get_study_id_from_name(study))
    except KeyError:
        return False
    return True
