"""The runs of a search: what each was to do, and how it ended. Whether a study is finished is decided here alone.

A run is one start of `automl search`, numbered by the lease; a verification is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from automl.storage.base import RunEnd
from automl.storage.connect import Guard
from automl.storage.sql import Database
from automl.storage.tables import Now, runs


class Price(NamedTuple):
    """What a device costs for an hour. currency: a code of three letters."""

    price: float
    currency: str


StudyState = Literal["running", "finished", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run. trials, steps: as the run was started, overrides included; 0 where an older version did not record them.

    ended: None while it runs, and if its driver was killed.
    """

    run: int
    trials: int
    steps: int
    metric: str
    ended: RunEnd | None


def study_state(driver: str | None, last: RunRow | None) -> StudyState:
    """The state of a study by its driver and its last run. stopped: `automl search` continues it."""
    if driver is not None:
        return "running"
    return "finished" if last is not None and last.ended is RunEnd.FINISHED else "stopped"


def last_run(database: Database, study: str) -> RunRow | None:
    """The latest run of a study's search; None if it has never been started, or there is no such study."""
    with database.reading(f"read the runs of study {study!r}") as connection:
        return last_runs(connection, [study]).get(study)


def last_runs(connection: Connection, studies: Sequence[str]) -> dict[str, RunRow]:
    """The latest run of each of these studies that has any."""
    mine = runs.c.study_name.in_(studies)
    latest = select(runs.c.study_name, func.max(runs.c.run).label("run")).where(mine).group_by(runs.c.study_name)
    last = latest.subquery()
    same = (runs.c.study_name == last.c.study_name) & (runs.c.run == last.c.run)
    return {row.study_name: _run(row) for row in connection.execute(select(runs).join(last, same))}


class RunLog:
    """The row of one run, written by the holder of the study's lease; waits while the database is away.

    has_trained: whether trials have been started.
    """

    def __init__(self, database: Database, study: str, run: int, guard: Guard) -> None:
        self._database = database
        self._study = study
        self.run = run
        self.has_trained = False
        self._guard = guard

    def begin(self, *, trials: int, steps: int, metric: str, price: Price | None = None) -> None:
        """Record what the run is to do, and what it pays for a device. steps: of a full trial, 0 if not known yet."""
        row = {"study_name": self._study, "run": self.run, "trials": trials, "steps": steps, "metric": metric}
        row |= {} if price is None else price._asdict()

        def write(connection: Connection) -> None:
            if connection.execute(select(runs.c.run).where(*self._mine())).first() is None:  # else it is repeated
                connection.execute(insert(runs).values(row | {"started_at": Now()}))

        self._write("record a run", write)

    def spend(self, device_seconds: float) -> None:
        """Record for how long devices have been held by now, all of them together."""
        statement = update(runs).where(*self._mine()).values(device_seconds=device_seconds)
        self._write("record the time of devices", lambda connection: connection.execute(statement))

    def settle(self, steps: int) -> None:
        """Record the steps of a full trial, now that they follow from the data."""
        statement = update(runs).where(*self._mine()).values(steps=steps)
        self._write("record the steps of a run", lambda connection: connection.execute(statement))

    def end(self, how: RunEnd) -> None:
        """Record how it ended; the first end stays."""
        values = {"ended": how.value, "ended_at": Now()}
        statement = update(runs).where(*self._mine(), runs.c.ended.is_(None)).values(values)
        self._write("record the end of a run", lambda connection: connection.execute(statement))

    def forget(self) -> None:
        """Delete a run that was refused before any trial started: what earlier runs have come to still holds."""
        statement = delete(runs).where(*self._mine(), runs.c.ended.is_(None))
        self._write("forget a run", lambda connection: connection.execute(statement))

    def _mine(self) -> tuple[Any, Any]:
        return runs.c.study_name == self._study, runs.c.run == self.run

    def _write(self, doing: str, change: Callable[[Connection], object]) -> None:
        def write() -> None:
            with self._database.writing(f"{doing} (study {self._study!r})") as connection:
                change(connection)
                self._guard(connection)

        self._database.retry.call(write)


def _run(row: Row[Any]) -> RunRow:
    ended = None if row.ended is None else RunEnd(row.ended)
    return RunRow(run=row.run, trials=row.trials, steps=row.steps, metric=row.metric, ended=ended)
