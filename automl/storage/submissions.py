"""Sweeps submitted through an API, and the schedulers that are there to run them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from automl.errors import QueueFull, SubmissionNotFoundError, SubmissionRefused
from automl.storage.claims import Claimant
from automl.storage.jobs import SchedulerRow, Submission, SubmissionState
from automl.storage.sql import Database
from automl.storage.tables import Now, schedulers, submissions

MOST_OPEN = 100
"""Submitted sweeps that may be queued or running together."""

_FORGOTTEN_AFTER = timedelta(days=7)
_SUBMITTING = 0x6175746F6D6D  # the key of an advisory lock
_OPEN = submissions.c.state.in_([SubmissionState.QUEUED.value, SubmissionState.RUNNING.value])


def submit(database: Database, study: str, space_text: str, submitted_by: str, *, most: int = MOST_OPEN) -> Submission:
    """Queue a sweep. The text must have been validated; `submitted_by` is a label for people, never trusted.

    most: sweeps that may be queued or running together. Raises SubmissionRefused if one of this study is, QueueFull.
    """
    row = {
        "id": secrets.token_hex(16),
        "study_name": study,
        "space_text": space_text,
        "submitted_at": Now(),
        "submitted_by": submitted_by,
        "state": SubmissionState.QUEUED.value,
        "attempts": 0,
        "message": "",
    }
    with database.writing(f"submit study {study!r}") as connection:
        _one_at_a_time(connection)
        waiting = list(connection.execute(select(submissions.c.study_name).where(_OPEN)).scalars())
        if study in waiting:
            raise SubmissionRefused(f"a sweep of study {study!r} is queued or running already")
        if len(waiting) >= most:
            raise QueueFull(f"{len(waiting)} sweeps are queued already; try again when some have ended")
        return _submission(connection.execute(insert(submissions).values(row).returning(submissions)).one())


def _one_at_a_time(connection: Connection) -> None:
    """Let nobody else submit until the transaction ends; on SQLite it holds the only write lock anyhow."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_SUBMITTING)))


def cancel(database: Database, identity: str) -> Submission:
    """Take a submission back: a queued one is not started, a running one is stopped by its scheduler, resumable.

    One that has ended stays as it is. Raises SubmissionNotFoundError.
    """
    free = {"owner": None, "owner_process": None, "lease_until": None}
    cancelled = {"state": SubmissionState.CANCELLED.value, "ended_at": Now(), "message": "cancelled", **free}
    with database.writing("cancel a submission") as connection:
        connection.execute(update(submissions).where(submissions.c.id == identity, _OPEN).values(cancelled))
    return find_submission(database, identity)


def find_submission(database: Database, identity: str) -> Submission:
    """One submission. Raises SubmissionNotFoundError."""
    with database.reading("read a submission") as connection:
        row = connection.execute(select(submissions).where(submissions.c.id == identity)).first()
    if row is None:
        raise SubmissionNotFoundError(f"no submission {identity!r}")
    return _submission(row)


def list_submissions(database: Database, *, limit: int | None = None) -> list[Submission]:
    """Submissions, the latest first."""
    query = select(submissions).order_by(submissions.c.submitted_at.desc(), submissions.c.id).limit(limit)
    with database.reading("list the submissions") as connection:
        return [_submission(row) for row in connection.execute(query)]


def list_schedulers(database: Database) -> list[SchedulerRow]:
    """Schedulers that have not ended in order, the one heard of last first."""
    query = select(schedulers, Now().label("now")).order_by(schedulers.c.seen_at.desc())
    with database.reading("list the schedulers") as connection:
        return [_scheduler(row) for row in connection.execute(query)]


class SubmissionStore:
    """Submissions as one scheduler works them off, and its heartbeat."""

    def __init__(self, claimant: Claimant) -> None:
        self._claimant = claimant
        self._database = claimant.database

    def has_work(self) -> bool:
        """Whether there is a submission that nobody works on."""
        with self._database.reading("look for a submission") as connection:
            return bool(self._claimant.takeable(connection, submissions))

    def take(self) -> Submission | None:
        """The next submission that nobody works on, now this process's own; None if there is none."""
        with self._database.reading("look for a submission") as connection:
            order = (submissions.c.submitted_at, submissions.c.id)
            rows = self._claimant.takeable(connection, submissions, *order)
        for row in rows:
            taken = self._claimant.take(submissions, row)
            if taken is not None:
                return _submission(taken)
        return None

    def renew(self, submission: Submission) -> bool:
        """Extend the lease; False if the submission was cancelled or taken over."""
        return self._claimant.renew(submissions, {"id": submission.id})

    def requeue(self, submission: Submission, message: str, *, wait_seconds: float = 0.0, counts: bool = True) -> bool:
        """Put it back, to be continued; False if it is this process's no longer."""
        key = {"id": submission.id}
        return self._claimant.requeue(submissions, key, message, wait_seconds=wait_seconds, counts=counts)

    def end(self, submission: Submission, state: SubmissionState, message: str, exit_code: int | None) -> bool:
        """Record how it ended; False if it is this process's no longer."""
        values = {"message": message, "exit_code": exit_code}
        return self._claimant.end(submissions, {"id": submission.id}, state.value, values)

    def beat(self, running: Sequence[str]) -> None:
        """Say that this process is alive and what it works on; forget those not heard of for a week."""
        with self._database.writing("beat") as connection:
            now = self._claimant.now_in(connection)
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            fresh = {"seen_at": now, "running": list(running)}
            about = {"owner": self._claimant.owner, "owner_process": self._claimant.process, "started_at": now}
            statement = dialect.insert(schedulers).values({**about, **fresh})
            connection.execute(statement.on_conflict_do_update(index_elements=["owner"], set_=fresh))
            connection.execute(delete(schedulers).where(schedulers.c.seen_at < now - _FORGOTTEN_AFTER))

    def sign_off(self) -> None:
        """Note that this process ends in order."""
        with self._database.writing("end the heartbeat") as connection:
            connection.execute(delete(schedulers).where(schedulers.c.owner == self._claimant.owner))


def _submission(row: Row[Any]) -> Submission:
    return Submission(
        id=row.id,
        study=row.study_name,
        space_text=row.space_text,
        submitted_at=row.submitted_at,
        submitted_by=row.submitted_by,
        state=SubmissionState(row.state),
        attempts=row.attempts,
        owner=row.owner,
        lease_until=row.lease_until,
        not_before=row.not_before,
        started_at=row.started_at,
        ended_at=row.ended_at,
        exit_code=row.exit_code,
        message=row.message,
    )


def _scheduler(row: Row[Any]) -> SchedulerRow:
    return SchedulerRow(
        owner=row.owner,
        started_at=row.started_at,
        seen_at=row.seen_at,
        seconds_silent=(row.now - row.seen_at).total_seconds(),
        running=row.running,
    )
