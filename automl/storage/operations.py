"""How the service is doing, in a few cheap queries: for metrics, dashboards and health checks. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select, text

from automl.storage.jobs import FiringState
from automl.storage.sql import Database
from automl.storage.tables import Now, firings, measurements, schedulers, schedules, submissions, sweeps
from automl.storage.trials import STATE

_COUNTS = text(
    """
    SELECT {state} AS state, COUNT(*) FROM trials t JOIN studies s ON s.study_id = t.study_id
    WHERE CAST(:study AS VARCHAR(255)) IS NULL OR s.study_name = :study GROUP BY 1
    """.replace("{state}", STATE)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivenStudy:
    """A study whose driver lives. trials: by state, parked ones as PARKED. lease_seconds: until its lease ends unless
    renewed; negative: overdue.

    steps_per_second: training steps of all its trials, over the last minutes.
    """

    study: str
    trials: Mapping[str, int]
    lease_seconds: float
    steps_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The service at one moment, `at` by the database's clock.

    trials: those of all studies by state, parked ones as PARKED. queued, running: nights and submissions.
    nights: (schedule, state) -> number.
    last_success: schedule -> end of its last successful night. silent_seconds: scheduler -> since its last heartbeat.
    """

    at: datetime
    studies: int
    trials: Mapping[str, int]
    driven: tuple[DrivenStudy, ...]
    queued: Mapping[str, int]
    running: Mapping[str, int]
    nights: Mapping[tuple[str, str], int]
    last_success: Mapping[str, datetime]
    paused: Mapping[str, bool]
    silent_seconds: Mapping[str, float]


def read_operations(database: Database, *, rate_seconds: float = 300.0) -> Operations:
    """Everything at once, in one transaction. rate_seconds: time over which training steps are counted."""
    with database.reading("read how the service is doing") as connection:
        now: datetime = connection.execute(select(Now())).scalar_one()
        return Operations(
            at=now,
            studies=connection.execute(select(func.count()).select_from(sweeps)).scalar_one(),
            trials=_trials(connection, None),
            driven=_driven(connection, now, rate_seconds),
            queued=_jobs(connection, "QUEUED"),
            running=_jobs(connection, "RUNNING"),
            nights=_nights(connection),
            last_success=_last_success(connection),
            paused={
                row.name: row.state == "PAUSED"
                for row in connection.execute(select(schedules.c.name, schedules.c.state))
            },
            silent_seconds={
                row.owner: (now - row.seen_at).total_seconds()
                for row in connection.execute(select(schedulers.c.owner, schedulers.c.seen_at))
            },
        )


def _trials(connection: Connection, study: str | None) -> dict[str, int]:
    return {str(state): int(count) for state, count in connection.execute(_COUNTS, {"study": study})}


def _jobs(connection: Connection, state: str) -> dict[str, int]:
    tables = {"nights": firings, "submissions": submissions}
    return {
        name: connection.execute(select(func.count()).select_from(jobs).where(jobs.c.state == state)).scalar_one()
        for name, jobs in tables.items()
    }


def _nights(connection: Connection) -> dict[tuple[str, str], int]:
    query = select(firings.c.schedule, firings.c.state, func.count()).group_by(firings.c.schedule, firings.c.state)
    return {(schedule, state): count for schedule, state, count in connection.execute(query)}


def _last_success(connection: Connection) -> dict[str, datetime]:
    good = firings.c.state.in_([FiringState.SUCCEEDED.value, FiringState.NO_IMPROVEMENT.value])
    ended = func.max(firings.c.ended_at, type_=firings.c.ended_at.type).label("ended")
    query = select(firings.c.schedule, ended).where(good).group_by(firings.c.schedule)
    return {row.schedule: row.ended for row in connection.execute(query)}


def _driven(connection: Connection, now: datetime, rate_seconds: float) -> tuple[DrivenStudy, ...]:
    query = select(sweeps.c.study_name, sweeps.c.lease_until).where(sweeps.c.owner.is_not(None))
    rates = _steps(connection, now - timedelta(seconds=rate_seconds))
    found = []
    for study, until in connection.execute(query.order_by(sweeps.c.study_name)).all():
        found.append(
            DrivenStudy(
                study=study,
                trials=_trials(connection, study),
                lease_seconds=(until - now).total_seconds(),
                steps_per_second=rates.get(study, 0) / rate_seconds,
            )
        )
    return tuple(found)


def _steps(connection: Connection, since: datetime) -> dict[str, int]:
    """Steps trained after `since` by studies that are driven: how far each trial has come since its last one before."""
    table = measurements
    driven = select(sweeps.c.study_name).where(sweeps.c.owner.is_not(None))
    key = (table.c.study_name, table.c.trial)
    last = select(*key, func.max(table.c.step).label("step")).where(table.c.study_name.in_(driven)).group_by(*key)
    now, before = last.subquery(), last.where(table.c.at <= since).subquery()
    same = (now.c.study_name == before.c.study_name) & (now.c.trial == before.c.trial)
    gain = func.sum(now.c.step - func.coalesce(before.c.step, 0))
    query = select(now.c.study_name, gain).outerjoin_from(now, before, same).group_by(now.c.study_name)
    return {study: int(steps) for study, steps in connection.execute(query)}
