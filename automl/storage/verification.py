"""Verifications in SQL: what was planned, every score as soon as it is known, and the result. Nothing decides here.

Keys of `plan` and `result` are described in docs/verification.md; they are written by `automl.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from automl.storage.connect import Guard
from automl.storage.sql import Database, retried
from automl.storage.tables import Now, verification_outcomes, verification_scores, verifications

ScoredSplit = Literal["validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """One verification of a study. result: None while it is not done."""

    study: str
    number: int
    plan: Mapping[str, Any]
    result: Mapping[str, Any] | None
    started_at: datetime
    ended_at: datetime | None

    @property
    def is_done(self) -> bool:
        """Whether the result is complete."""
        return self.result is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one training of an arm, on one split. Finite."""

    arm: str
    seed: int
    learning_rate: float
    split: ScoredSplit
    metric: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcomes:
    """What a training of an arm has made of each row of one split, as `automl.outcomes` writes it."""

    arm: str
    seed: int
    learning_rate: float
    split: ScoredSplit
    outcomes: str


def latest(database: Database, study: str, *, done: bool = False) -> Verification | None:
    """The newest verification of a study (with `done`: the newest that is complete), None if there is none."""
    return VerificationStore(database, study).latest(done=done)


class VerificationStore:
    """The verifications of one study in a `Database`; `guard` (`StudyLease.verify`) is called before each commit.

    Each method is one transaction, repeated while the database is away.
    """

    def __init__(self, database: Database, study: str, guard: Guard | None = None) -> None:
        self.study = study
        self._database = database
        self._guard = guard
        self._beginning: int | None = None  # verification whose commit has not been answered

    @retried
    def latest(self, *, done: bool = False) -> Verification | None:
        """See the module's `latest`."""
        query = select(verifications).where(verifications.c.study_name == self.study)
        if done:
            query = query.where(verifications.c.state == "DONE")
        query = query.order_by(verifications.c.number.desc()).limit(1)
        with self._database.reading(f"read the verifications of study {self.study!r}") as connection:
            row = connection.execute(query).first()
        return None if row is None else _verification(row)

    @retried
    def begin(self, number: int, plan: Mapping[str, Any]) -> None:
        """Record verification `number` as RUNNING. Raises StorageError if that number is taken."""
        row = {
            "study_name": self.study,
            "number": number,
            "state": "RUNNING",
            "plan": dict(plan),
            "started_at": Now(),
        }
        with self._writing(f"begin verification {number}") as connection:
            if not (self._beginning == number and self._is_there(connection, number)):  # else its answer was lost
                connection.execute(insert(verifications).values(row))
                self._beginning = number
        self._beginning = None

    @retried
    def add_scores(self, number: int, scores: Sequence[Score], outcomes: Sequence[RowOutcomes] = ()) -> None:
        """Store scores, and what they were made of, in one transaction; what is stored already is kept as it is."""
        rows = [
            {
                "study_name": self.study,
                "verification": number,
                "arm": score.arm,
                "seed": score.seed,
                "learning_rate": score.learning_rate,
                "split": score.split,
                "metric": score.metric,
                "value": score.value,
            }
            for score in scores
        ]
        with self._writing(f"store {len(rows)} scores of verification {number}") as connection:
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            statement = dialect.insert(verification_scores).values(at=Now()).on_conflict_do_nothing()
            connection.execute(statement, rows)
            if outcomes:
                key = {"study_name": self.study, "verification": number}
                made = [{**key, **asdict(each)} for each in outcomes]
                connection.execute(dialect.insert(verification_outcomes).on_conflict_do_nothing(), made)

    @retried
    def scores(self, number: int) -> list[Score]:
        """All scores of a verification, in the order of its key."""
        table = verification_scores
        query = select(table).where(table.c.study_name == self.study, table.c.verification == number)
        query = query.order_by(table.c.arm, table.c.seed, table.c.learning_rate, table.c.split, table.c.metric)
        with self._database.reading(f"read the scores of verification {number}") as connection:
            return [_score(row) for row in connection.execute(query)]

    @retried
    def outcomes(self, number: int) -> list[RowOutcomes]:
        """What the scores of a verification were made of, where that is known."""
        table = verification_outcomes
        names = [table.c[field.name] for field in fields(RowOutcomes)]
        query = select(*names).where(table.c.study_name == self.study, table.c.verification == number)
        with self._database.reading(f"read the outcomes of verification {number}") as connection:
            return [RowOutcomes(**row._mapping) for row in connection.execute(query)]

    @retried
    def finish(self, number: int, result: Mapping[str, Any]) -> None:
        """Record the result; the verification is DONE."""
        done = {"state": "DONE", "result": dict(result), "ended_at": Now()}
        mine = (verifications.c.study_name == self.study) & (verifications.c.number == number)
        with self._writing(f"finish verification {number}") as connection:
            connection.execute(update(verifications).where(mine).values(done))

    def _is_there(self, connection: Connection, number: int) -> bool:
        mine = (verifications.c.study_name == self.study) & (verifications.c.number == number)
        return connection.execute(select(verifications.c.number).where(mine)).first() is not None

    @contextmanager
    def _writing(self, doing: str) -> Iterator[Connection]:
        with self._database.writing(f"{doing} of study {self.study!r}") as connection:
            yield connection
            if self._guard is not None:
                self._guard(connection)


def _verification(row: Row[Any]) -> Verification:
    return Verification(
        study=row.study_name,
        number=row.number,
        plan=row.plan,
        result=row.result,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def _score(row: Row[Any]) -> Score:
    return Score(
        arm=row.arm,
        seed=row.seed,
        learning_rate=row.learning_rate,
        split=row.split,
        metric=row.metric,
        value=row.value,
    )
