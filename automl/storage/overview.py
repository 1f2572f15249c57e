"""What viewers ask of a database about its studies: which there are, and each one's totals. Aggregated in SQL.

Meant for pages that are asked for often, of studies with many thousand trials: no Optuna objects are made, and nothing
is read that is not shown. The trials of one study are in `automl.storage.trial_pages`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Connection, Row, Select, String, TextClause, bindparam, func, select, text

from automl.metric import METRICS, Direction, as_loss
from automl.storage.lease import drivers, holds
from automl.storage.ranking import filled
from automl.storage.runs import RunRow, StudyState, last_runs, study_state
from automl.storage.spending import NOTHING, Spent, spent_in
from automl.storage.sql import Database
from automl.storage.tables import Now, sweeps
from automl.storage.trials import STATE

PAGE = 200
"""Most trials that `list_page` returns at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationState:
    """The newest verification of a study. headline: its outcome in words, empty while it runs."""

    number: int
    is_done: bool
    headline: str = ""
    beats_majority: bool = True
    seeds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTotals:
    """A study in numbers. counts: trials by state, parked ones as PARKED. best: objective of the best COMPLETE trial on
    validation rows. steps, seconds, tokens: trained so far, by all trials. spent: with time of devices and money.
    driver: who holds the lease, None if nobody does. last_run: what the latest run was to do, and how it ended.

    Sums made in SQL, for pages of many studies; `automl.results.summary.Summary` is a study read with its trials.
    """

    study: str
    metric: str
    direction: Direction
    space_sha256: str
    runs: int
    driver: str | None
    created_at: datetime
    last_run: RunRow | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    best: float | None = None
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    started_at: datetime | None = None
    last_at: datetime | None = None
    verification: VerificationState | None = None
    spent: Spent = NOTHING

    @property
    def state(self) -> StudyState:
        """running, finished, or stopped: `automl search` continues it."""
        return study_state(self.driver, self.last_run)

    @property
    def planned(self) -> int:
        """Trials that the latest run was asked for; 0 if that is not known."""
        return self.last_run.trials if self.last_run else 0

    @property
    def ended(self) -> int:
        """Trials that count against the budget."""
        return self.counts.get("COMPLETE", 0) + self.counts.get("PRUNED", 0)


def _of_studies(query: str) -> TextClause:
    return text(query).bindparams(bindparam("studies", expanding=True, type_=String))


_COUNTS = _of_studies(
    """
SELECT s.study_name, {state} AS state, COUNT(*) AS trials,
  MIN(t.datetime_start) AS started, MAX(t.datetime_complete) AS ended
FROM trials t JOIN studies s ON s.study_id = t.study_id
WHERE s.study_name IN :studies GROUP BY 1, 2""".replace("{state}", STATE)
)

_ABOUT = _of_studies("""
SELECT s.study_name, d.direction, o.value_json AS metric
FROM studies s LEFT JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
LEFT JOIN study_user_attributes o ON o.study_id = s.study_id AND o.key = 'objective'
WHERE s.study_name IN :studies""")

_BEST = _of_studies(
    filled("""
SELECT s.study_name, MIN({loss}) AS loss
FROM trials t JOIN studies s ON s.study_id = t.study_id {direction}
JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
WHERE t.state = 'COMPLETE' AND s.study_name IN :studies
GROUP BY s.study_name""")
)

# Seconds and tokens grow with the step, so the row of a trial's last step holds what it has cost.
_SPENT = _of_studies("""
SELECT m.study_name, SUM(m.step) AS steps, SUM(m.seconds) AS seconds, SUM(m.tokens) AS tokens
FROM automl_measurements m JOIN (
  SELECT study_name, trial, MAX(step) AS step FROM automl_measurements
  WHERE study_name IN :studies GROUP BY study_name, trial
) l ON l.study_name = m.study_name AND l.trial = m.trial AND l.step = m.step GROUP BY m.study_name""")

_VERIFIED = _of_studies("""
SELECT v.study_name, v.number, v.state, v.result FROM automl_verifications v JOIN (
  SELECT study_name, MAX(number) AS number FROM automl_verifications
  WHERE study_name IN :studies GROUP BY study_name
) l ON l.study_name = v.study_name AND l.number = v.number""")


def count_studies(database: Database) -> int:
    """How many studies a sweep was started for."""
    with database.reading("count the studies") as connection:
        return connection.execute(select(func.count()).select_from(sweeps)).scalar_one()


def list_studies(database: Database, *, limit: int = PAGE, offset: int = 0) -> list[str]:
    """Names of studies: those being driven, then the others, each the one that was driven last first."""
    name, latest_first = sweeps.c.study_name, (sweeps.c.updated_at.desc(), sweeps.c.study_name.desc())
    with database.reading("list the studies") as connection:
        held = [driver.study for driver in drivers(connection)]
        driven = list(connection.execute(select(name).where(name.in_(held)).order_by(*latest_first)).scalars())
        first = driven[offset : offset + limit]
        rest = select(name).where(name.not_in(driven)).order_by(*latest_first)
        page = rest.limit(limit - len(first)).offset(max(0, offset - len(driven)))
        return [*first, *connection.execute(page).scalars()]


def study_totals(database: Database, studies: Sequence[str]) -> list[StudyTotals]:
    """Totals of these studies, in this order, without those that no sweep was started for."""
    columns = [column for column in sweeps.c if column is not sweeps.c.space_text]
    with database.reading("sum up the studies") as connection:
        query: Select[Any] = select(*columns, (sweeps.c.lease_until > Now()).label("is_valid"))
        rows = connection.execute(query.where(sweeps.c.study_name.in_(studies))).all()
        known = _Known(connection, [row.study_name for row in rows])
        found = {row.study_name: known.totals(row) for row in rows}
    return [found[name] for name in dict.fromkeys(studies) if name in found]


class _Known:
    """The answers to the questions about some studies, by study."""

    def __init__(self, connection: Connection, studies: Sequence[str]) -> None:
        self._about = _by_study(connection, _ABOUT, studies)
        self._best = _by_study(connection, _BEST, studies)
        self._spent = _by_study(connection, _SPENT, studies)
        self._paid = spent_in(connection, studies)
        self._verified = _by_study(connection, _VERIFIED, studies)
        self._runs = last_runs(connection, studies)
        self._states: dict[str, list[Row[Any]]] = defaultdict(list)
        for row in connection.execute(_COUNTS, {"studies": studies}):
            self._states[row.study_name].append(row)

    def totals(self, row: Row[Any]) -> StudyTotals:
        name = row.study_name
        about, best, spent = self._about.get(name), self._best.get(name), self._spent.get(name)
        states, verified = self._states.get(name, []), self._verified.get(name)
        run = self._runs.get(name)
        metric = str(json.loads(about.metric)) if about is not None and about.metric else run.metric if run else ""
        direction = _direction(about, metric)
        return StudyTotals(
            study=name,
            metric=metric,
            direction=direction,
            last_run=run,
            space_sha256=row.space_sha256,
            runs=row.runs,
            driver=row.owner if row.owner and holds(row.owner_process or "", is_valid=bool(row.is_valid)) else None,
            created_at=row.created_at,
            counts={state.state: state.trials for state in states},
            best=None if best is None else as_loss(best.loss, direction),
            steps=int(spent.steps) if spent is not None else 0,
            seconds=float(spent.seconds) if spent is not None else 0.0,
            tokens=int(spent.tokens) if spent is not None else 0,
            started_at=min((at for each in states if (at := instant(each.started))), default=None),
            last_at=max((at for each in states if (at := instant(each.ended))), default=None),
            spent=self._paid[name],
            verification=None if verified is None else _verification(verified),
        )


def _direction(about: Row[Any] | None, metric: str) -> Direction:
    """The direction by Optuna, or by the metric while Optuna has not been told yet."""
    if about is not None and about.direction is not None:
        return cast("Direction", about.direction.lower())
    return METRICS[metric].direction if metric in METRICS else "minimize"


def _by_study(connection: Connection, query: TextClause, studies: Sequence[str]) -> dict[str, Row[Any]]:
    return {row.study_name: row for row in connection.execute(query, {"studies": studies})}


def _verification(row: Row[Any]) -> VerificationState:
    result = json.loads(row.result) if isinstance(row.result, str) else row.result
    if row.state != "DONE" or not result:
        return VerificationState(number=row.number, is_done=False)
    return VerificationState(
        number=row.number,
        is_done=True,
        headline=str(result.get("headline", "")),
        beats_majority=bool(result.get("beats_majority", True)),
        seeds=len(result.get("seeds", ())),
    )


def instant(value: datetime | str | None) -> datetime | None:
    """Optuna's times are UTC without a zone; SQLite gives an aggregate of them as text."""
    if value is None:
        return None
    return (datetime.fromisoformat(value) if isinstance(value, str) else value).replace(tzinfo=UTC)
