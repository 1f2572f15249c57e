"""The result store in SQL: one database, and in it one `SqlStore` per study.

Only the driver writes. Reads return values of `automl.storage.base`; SQLAlchemy's objects stay inside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial, wraps
from itertools import groupby
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Row, Select, Table, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import CoreExecuteOptionsParameter

from automl.errors import StudyNotFoundError
from automl.nearest import did_you_mean
from automl.storage import schema
from automl.storage.base import Artifact, Attempt, AttemptState, ResultStore, SweepRow
from automl.storage.connect import WRITES, Guard, make_engine, storage_errors
from automl.storage.importance import read_importances, replace_importances
from automl.storage.retry import Retry
from automl.storage.schema import DatabaseStatus
from automl.storage.tables import Now, artifacts, attempts, events, measurements, metric_values, sweeps
from automl.storage.url import mask_url, parse_url
from automl.trial import Measurement, ModuleImportance

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

__all__ = [
    "Database",
    "DatabaseStatus",
    "SqlStore",
    "database_status",
    "mask_url",
    "open_database",
    "retried",
]

_WRITES: CoreExecuteOptionsParameter = {WRITES: True}


def open_database(url: str, *, create: bool, read_only: bool = False, grace_seconds: float = 0.0) -> Database:
    """Open a database whose tables are at this program's revision.

    create: make the file and the tables if there are none; without it nothing is ever written by opening, so a missing,
    empty, damaged or foreign file stays as it is. Who creates will write, so a large SQLite file is then looked at page
    by page; else only a small one is, and damage to another is noticed where it is read. read_only: for viewers, every
    write fails. grace_seconds: longest outage that the holder of a lease waits out, see `automl.storage.retry`;
    opening itself does not wait.
    Raises StorageError with a one-line hint (`automl db init`, `automl db upgrade`).
    """
    parsed = parse_url(url)
    if create:
        schema.create_database(parsed)
    schema.verify_database(parsed, thorough=create)
    return Database(parsed, read_only=read_only, grace_seconds=grace_seconds)


def database_status(url: str, *, thorough: bool = False) -> DatabaseStatus:
    """Describe a database of any revision, also a missing one, without changing it. thorough: every page is read."""
    return schema.database_status(parse_url(url), thorough=thorough)


class Database:
    """An open database. Close it, or use it as a context manager."""

    def __init__(self, url: URL, *, read_only: bool = False, grace_seconds: float = 0.0) -> None:
        self.address = url  # with its password: for this package only
        self.read_only = read_only
        self.retry = Retry(url, grace_seconds)
        self._engine = make_engine(url, read_only=read_only)
        self._handed_out: dict[Guard | None, RDBStorage] = {}
        self._handing_out = threading.Lock()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database({self.url!r})"

    @property
    def url(self) -> str:
        """The URL as it may be shown."""
        return mask_url(self.address)

    def store(self, study: str, guard: Guard | None = None) -> SqlStore:
        """The result store of one study; `guard` (`StudyLease.verify`) is called before each commit."""
        return SqlStore(self, study, guard)

    def optuna_storage(self, guard: Guard | None = None) -> RDBStorage:
        """Optuna's storage on the same database; `guard` as for `store`.

        One for each guard, and one without: it has connections of its own, kept until the database is closed.
        """
        from automl.storage.optuna_storage import open_storage

        with self._handing_out:
            if guard not in self._handed_out:
                self._handed_out[guard] = open_storage(self.address, read_only=self.read_only, guard=guard)
            return self._handed_out[guard]

    def driver_storage(self, guard: Guard) -> BaseStorage:
        """Optuna's storage for the holder of a study's lease, who waits while the database is away."""
        from automl.storage.optuna_retry import RetryingStorage

        def verify() -> None:
            with self.reading("verify the lease") as connection:
                guard(connection)

        return RetryingStorage(self.optuna_storage(guard), self.retry, verify)

    def studies(self) -> list[SweepRow]:
        """All studies that a sweep was started for, by name."""
        with self.reading("list the studies") as connection:
            return [_sweep_row(row) for row in connection.execute(select(sweeps).order_by(sweeps.c.study_name))]

    def study_names(self) -> list[str]:
        """Names of all studies that a sweep was started for, in order. Unlike `studies` it reads no texts."""
        with self.reading("list the studies") as connection:
            return list(connection.execute(select(sweeps.c.study_name).order_by(sweeps.c.study_name)).scalars())

    def importances(self, study: str, *, latest: int | None = None) -> dict[int, tuple[ModuleImportance, ...]]:
        """The newest importances of each trial of a study that has any, by trial; modules in natural order.

        latest: only those of so many trials, the latest that have any.
        """
        with self.reading(f"read the importances of study {study!r}") as connection:
            return read_importances(connection, study, latest=latest)

    def check_pages(self) -> None:
        """Look at every page of a SQLite file. Raises StorageError if one is damaged."""
        schema.check_pages(self.address)

    def status(self) -> DatabaseStatus:
        """Revisions, number of studies and size."""
        return schema.database_status(self.address)

    def close(self) -> None:
        """Close all connections, those of the storages it has handed out too."""
        self._engine.dispose()
        for storage in self._handed_out.values():
            storage.remove_session()
            storage.engine.dispose()
        self._handed_out.clear()

    @contextmanager
    def reading(self, doing: str) -> Iterator[Connection]:
        """A connection for queries; errors say what could not be done."""
        with storage_errors(self.address, doing), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, doing: str) -> Iterator[Connection]:
        """One transaction, committed at the end, rolled back on any error."""
        with (
            storage_errors(self.address, doing),
            self._engine.connect().execution_options(**_WRITES) as connection,
            connection.begin(),
        ):
            yield connection


class InDatabase(Protocol):
    """A store whose rows are in a `Database`."""

    _database: Database


S = TypeVar("S", bound=InDatabase)
P = ParamSpec("P")
T = TypeVar("T")


def retried(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """The method, repeated while the database is away. It must be one transaction that may be repeated."""

    @wraps(method)
    def call(self: S, /, *arguments: P.args, **named: P.kwargs) -> T:
        return self._database.retry.call(partial(method, self, *arguments, **named))

    return call


class SqlStore(ResultStore):
    """Results of one study in a `Database`. Each method is one transaction, repeated while the database is away."""

    def __init__(self, database: Database, study: str, guard: Guard | None = None) -> None:
        self.study = study
        self._database = database
        self._guard = guard
        self._opening: dict[int, int] = {}  # trial -> attempt whose commit has not been answered

    @retried
    def sweep(self) -> SweepRow:
        with self._database.reading(f"read study {self.study!r}") as connection:
            row = connection.execute(select(sweeps).where(sweeps.c.study_name == self.study)).first()
            names = list(connection.execute(select(sweeps.c.study_name)).scalars()) if row is None else []
        if row is None:
            raise StudyNotFoundError(_unknown_study(self.study, names, self._database.url))
        return _sweep_row(row)

    @retried
    def add_measurements(self, measurements: Sequence[Measurement]) -> None:
        if not measurements:
            return
        with self._writing(f"store {len(measurements)} measurements") as connection:
            fresh = self._without_stored(connection, measurements)
            if fresh:
                _insert_measurements(connection, self.study, fresh)
                replace_importances(connection, self.study, fresh)

    @retried
    def measurements(self, trial: int | None = None) -> list[Measurement]:
        table, values = measurements, metric_values
        query = (
            select(table.c.trial, table.c.step, table.c.seconds, table.c.tokens, table.c.examples, table.c.adapter)
            .add_columns(values.c.metric, values.c.value)
            .outerjoin_from(table, values, _same_measurement(table, values))
        )
        query = self._of_trial(query, table, trial).order_by(table.c.trial, table.c.step, values.c.metric)
        with self._database.reading("read measurements") as connection:
            rows = connection.execute(query).all()
        return [_measurement(list(group)) for _, group in groupby(rows, key=lambda row: (row.trial, row.step))]

    @retried
    def start_attempt(self, trial: int, *, worker: int, run: int) -> Attempt:
        mine = (attempts.c.study_name == self.study) & (attempts.c.trial == trial)
        with self._writing(f"open an attempt of trial {trial}") as connection:
            last = connection.execute(select(func.max(attempts.c.number)).where(mine)).scalar() or 0
            if self._opening.get(trial) != last:  # else it is repeated: it was committed, but the answer was lost
                lost = {"state": AttemptState.LOST.value, "reason": "superseded by the next attempt", "ended_at": Now()}
                running = attempts.c.state == AttemptState.RUNNING.value
                connection.execute(update(attempts).where(mine, running).values(lost))
                last = self._opening[trial] = last + 1
                row = {
                    "study_name": self.study,
                    "trial": trial,
                    "number": last,
                    "worker": worker,
                    "run": run,
                    "state": AttemptState.RUNNING.value,
                    "reason": "",
                    "started_at": Now(),
                }
                connection.execute(insert(attempts).values(row))
            opened = connection.execute(select(attempts).where(mine, attempts.c.number == last)).one()
        del self._opening[trial]
        return _attempt(opened)

    @retried
    def end_attempt(self, trial: int, state: AttemptState, reason: str) -> None:
        if state is AttemptState.RUNNING:
            raise ValueError("an attempt cannot be ended as RUNNING")
        running = attempts.c.state == AttemptState.RUNNING.value
        ended = {"state": state.value, "reason": str(reason), "ended_at": Now()}
        with self._writing(f"close the attempt of trial {trial}") as connection:
            mine = (attempts.c.study_name == self.study) & (attempts.c.trial == trial)
            connection.execute(update(attempts).where(mine, running).values(ended))

    @retried
    def attempts(self, trial: int | None = None) -> list[Attempt]:
        query = self._of_trial(select(attempts), attempts, trial).order_by(attempts.c.trial, attempts.c.number)
        with self._database.reading("read attempts") as connection:
            return [_attempt(row) for row in connection.execute(query)]

    @retried
    def add_artifact(self, artifact: Artifact) -> None:
        key = {"study_name": self.study, "trial": artifact.trial, "kind": artifact.kind}
        row = {
            "path": artifact.path,
            "sha256": artifact.sha256,
            "bytes": artifact.bytes,
            "metric": artifact.metric,
            "created_at": Now(),
            "deleted_at": artifact.deleted_at,
        }
        with self._writing(f"record the {artifact.kind} of trial {artifact.trial}") as connection:
            statement = _dialect_insert(connection, artifacts).values({**key, **row})
            connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=row))

    @retried
    def delete_artifact(self, trial: int, kind: str) -> None:
        mine = (artifacts.c.study_name == self.study) & (artifacts.c.trial == trial) & (artifacts.c.kind == kind)
        with self._writing(f"mark the {kind} of trial {trial} deleted") as connection:
            connection.execute(update(artifacts).where(mine, artifacts.c.deleted_at.is_(None)).values(deleted_at=Now()))

    @retried
    def artifacts(self, *, include_deleted: bool = False) -> list[Artifact]:
        query = self._of_trial(select(artifacts), artifacts, None).order_by(artifacts.c.trial, artifacts.c.kind)
        if not include_deleted:
            query = query.where(artifacts.c.deleted_at.is_(None))
        with self._database.reading("read artifacts") as connection:
            return [_artifact(row) for row in connection.execute(query)]

    @retried
    def add_event(self, kind: str, detail: Mapping[str, Any]) -> None:
        row = {"study_name": self.study, "at": Now(), "kind": str(kind), "detail": dict(detail)}
        with self._writing(f"record event {kind!r}") as connection:
            connection.execute(insert(events).values(row))

    @retried
    def last_event(self, kind: str) -> Mapping[str, Any] | None:
        query = select(events.c.detail).where(events.c.study_name == self.study, events.c.kind == kind)
        with self._database.reading(f"read the last event {kind!r}") as connection:
            return connection.execute(query.order_by(events.c.id.desc()).limit(1)).scalar()

    @retried
    def events(self) -> list[tuple[datetime, str, Mapping[str, Any]]]:
        query = select(events).where(events.c.study_name == self.study).order_by(events.c.id)
        with self._database.reading("read events") as connection:
            return [(row.at, row.kind, row.detail) for row in connection.execute(query)]

    @contextmanager
    def _writing(self, doing: str) -> Iterator[Connection]:
        with self._database.writing(f"{doing} (study {self.study!r})") as connection:
            yield connection
            if self._guard is not None:
                self._guard(connection)

    def _of_trial(self, query: Select[Any], table: Table, trial: int | None) -> Select[Any]:
        query = query.where(table.c.study_name == self.study)
        return query if trial is None else query.where(table.c.trial == trial)

    def _without_stored(self, connection: Connection, given: Sequence[Measurement]) -> list[Measurement]:
        """Measurements not stored yet; of several for one (trial, step) the first."""
        trials = sorted({measurement.trial for measurement in given})
        query = select(measurements.c.trial, measurements.c.step)
        query = query.where(measurements.c.study_name == self.study, measurements.c.trial.in_(trials))
        stored = {(row.trial, row.step) for row in connection.execute(query)}
        fresh: dict[tuple[int, int], Measurement] = {}
        for measurement in given:
            key = (measurement.trial, measurement.step)
            if key not in stored:
                fresh.setdefault(key, measurement)
        return list(fresh.values())


def _insert_measurements(connection: Connection, study: str, fresh: Sequence[Measurement]) -> None:
    rows = [
        {
            "study_name": study,
            "trial": measurement.trial,
            "step": measurement.step,
            "seconds": measurement.seconds,
            "tokens": measurement.tokens,
            "examples": measurement.examples,
            "adapter": measurement.adapter,
        }
        for measurement in fresh
    ]
    connection.execute(insert(measurements).values(at=Now()), rows)
    values = [
        {"study_name": study, "trial": measurement.trial, "step": measurement.step, "metric": metric, "value": value}
        for measurement in fresh
        for metric, value in measurement.metrics.items()
    ]
    if values:
        connection.execute(insert(metric_values), values)


def _same_measurement(left: Table, right: Table) -> Any:
    return (left.c.study_name == right.c.study_name) & (left.c.trial == right.c.trial) & (left.c.step == right.c.step)


def _dialect_insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _measurement(rows: Sequence[Row[Any]]) -> Measurement:
    first = rows[0]
    return Measurement(
        trial=first.trial,
        step=first.step,
        metrics={row.metric: row.value for row in rows if row.metric is not None},
        seconds=first.seconds,
        tokens=first.tokens,
        examples=first.examples or 0,
        adapter=first.adapter,
    )


def _attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        trial=row.trial,
        number=row.number,
        worker=row.worker,
        run=row.run,
        state=AttemptState(row.state),
        reason=row.reason,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def _artifact(row: Row[Any]) -> Artifact:
    return Artifact(
        trial=row.trial,
        kind=row.kind,
        path=row.path,
        sha256=row.sha256,
        bytes=row.bytes,
        metric=row.metric,
        deleted_at=row.deleted_at,
    )


def _sweep_row(row: Row[Any]) -> SweepRow:
    return SweepRow(
        study=row.study_name,
        space_text=row.space_text,
        space_sha256=row.space_sha256,
        provenance=row.provenance,
        runs=row.runs,
        owner=row.owner,
        lease_until=row.lease_until,
        identity=row.identity,
        folder=row.folder,
    )


def _unknown_study(study: str, names: Sequence[str], url: str) -> str:
    known = ", ".join(sorted(names)) or "none"
    return f"{url}: no study {study!r}; there is: {known}{did_you_mean(study, names)}"
