"""Taking a whole study out of the database, Optuna's rows and ours, in small transactions.

A study of many thousand trials has millions of rows; in one transaction nobody else could write meanwhile (SQLite), and
no lease could be renewed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import Connection, Table, column, delete, inspect, select, table, tuple_
from sqlalchemy.sql.expression import TableClause

from automl.storage.connect import Guard
from automl.storage.lease import held
from automl.storage.sql import Database
from automl.storage.tables import (
    artifacts,
    attempts,
    events,
    importances,
    measurements,
    metric_values,
    runs,
    squeeze_cuts,
    squeezed_modules,
    squeezes,
    sweeps,
    verification_outcomes,
    verification_scores,
    verifications,
)

_OURS = (
    squeeze_cuts,
    squeezed_modules,
    squeezes,
    verification_outcomes,
    verification_scores,
    verifications,
    importances,
    metric_values,
    measurements,
    artifacts,
    attempts,
    events,
    runs,
)
"""Those that refer to others before these; the row that holds the lease goes after all."""
_TRIALS_AT_ONCE = 100
_ROWS_AT_ONCE = 2000

_STUDIES = table("studies", column("study_id"), column("study_name"))
_TRIALS = table("trials", column("trial_id"), column("study_id"))

Delete = Callable[[Connection], int]


def remove_study(database: Database, study: str) -> bool:
    """Delete every row of a study; whether there was any. Files stay. Killed in between, the same call completes it.

    Raises StudyBusyError if it is being driven, LeaseLostError if somebody has taken it meanwhile.
    """
    with held(database, study) as guard:
        removed = 0
        for step in (*_optunas(database, study), *map(_ours(study), _OURS)):
            while count := _run(database, study, step, guard):
                removed += count
        return bool(_run(database, study, _last(study), guard) or removed)


def _run(database: Database, study: str, step: Delete, guard: Guard) -> int:
    """Do a part in a transaction; the number of rows that have gone."""
    with database.writing(f"remove study {study!r}") as connection:
        guard(connection)
        return step(connection)


def _ours(study: str) -> Callable[[Table], Delete]:
    def step(of: Table) -> Delete:
        key = list(of.primary_key)
        some = select(*key).where(of.c.study_name == study).limit(_ROWS_AT_ONCE)
        chosen = tuple_(*key).in_(some) if len(key) > 1 else key[0].in_(some)
        statement = delete(of).where(chosen)
        return lambda connection: connection.execute(statement).rowcount

    return step


def _last(study: str) -> Delete:
    statement = delete(sweeps).where(sweeps.c.study_name == study)
    return lambda connection: connection.execute(statement).rowcount


def _optunas(database: Database, study: str) -> Iterator[Delete]:
    """Optuna's rows: trials with all that refers to them, some at a time; then the study with all that refers to it.

    What refers to what is read from the database, since Optuna's versions differ in it.
    """
    with database.reading("read what refers to Optuna's trials and studies") as connection:
        of_trials = _referring(connection, _TRIALS)
        of_studies = [found for found in _referring(connection, _STUDIES) if found.name != _TRIALS.name]
    mine = select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study)
    some = select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id.in_(mine)).limit(_TRIALS_AT_ONCE)

    def trials(connection: Connection) -> int:
        ids = list(connection.execute(some).scalars())
        for referring in (*of_trials, _TRIALS):
            connection.execute(delete(referring).where(referring.c.trial_id.in_(ids)))
        return len(ids)

    def rest(connection: Connection) -> int:
        for referring in of_studies:
            connection.execute(delete(referring).where(referring.c.study_id.in_(mine)))
        return connection.execute(delete(_STUDIES).where(_STUDIES.c.study_name == study)).rowcount

    yield from (trials, rest)


def _referring(connection: Connection, to: TableClause) -> list[TableClause]:
    """Tables with a foreign key to this one, which has the same name there."""
    known = inspect(connection)
    names = {
        name
        for (_, name), keys in known.get_multi_foreign_keys().items()
        for key in keys
        if key["referred_table"] == to.name
    }
    key = next(iter(to.c)).name
    return [table(name, column(key)) for name in sorted(filter(None, names))]
