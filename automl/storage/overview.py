"""What viewers ask of a database: totals of studies, trials page by page, improvements, curves. Aggregated in SQL.

Meant for pages that are asked for often, of studies with many thousand trials: no Optuna objects are made, and nothing
is read that is not shown. Optuna has an index on a trial's study but none on its number, so every query
names the study.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Row, Select, String, TextClause, bindparam, case, func, select, text

from automl.metric import METRICS, Direction, as_loss
from automl.storage.lease import drivers, holds
from automl.storage.ranking import filled
from automl.storage.runs import RunRow, StudyState, last_runs, study_state
from automl.storage.sql import Database
from automl.storage.tables import Now, measurements, sweeps
from automl.storage.trials import STATE, CurvePoint, decoded
from automl.trial import Scalar

PAGE = 200
"""Most trials that `list_page` returns at once."""
_PLACES = 500


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
    validation rows.


    steps, seconds, tokens: trained so far, by all trials. driver: who holds the lease, None if nobody does.
    last_run: what the latest run was to do, and how it ended.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLine:
    """One trial. value: of an ended one the objective, of another one the latest measurement. step: last measured.

    state: as in Optuna, or PARKED. worker: that trains it at this moment, None if none does.
    """

    number: int
    state: str
    value: float | None
    step: int
    params: Mapping[str, Scalar]
    stop_reason: str
    error: str
    started_at: datetime | None
    ended_at: datetime | None
    worker: int | None = None


class TrialValue(NamedTuple):
    """A trial in the history of a study."""

    number: int
    value: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How quickly a study is trained: steps of all its trials within the last `seconds`. now: the database's clock."""

    steps: int
    seconds: float
    now: datetime


class Standing(NamedTuple):
    """The number of a study's trials with this state and this last step, 0 without a measurement."""

    state: str
    step: int
    trials: int


def _of_studies(query: str) -> TextClause:
    return text(query).bindparams(bindparam("studies", expanding=True, type_=String))


_VALUED = """
FROM trials t JOIN studies s ON s.study_id = t.study_id {direction}
JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
WHERE s.study_name = :study"""

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

_REASONS = text("""
SELECT r.value_json AS reason, COUNT(*) AS trials FROM trial_user_attributes r
WHERE r.key = 'stop_reason' AND r.trial_id IN (
  SELECT t.trial_id FROM trials t JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :study)
GROUP BY r.value_json ORDER BY COUNT(*) DESC, r.value_json""")

# A trial is an improvement if no COMPLETE trial with a smaller number is at least as good: few rows of many.
_IMPROVEMENTS = text(
    filled(
        """
SELECT number, value FROM (
  SELECT t.number, v.value, {loss} AS loss, MIN({loss}) OVER (
    ORDER BY t.number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
  {valued} AND t.state = 'COMPLETE') w
WHERE before IS NULL OR loss < before ORDER BY number""".replace("{valued}", _VALUED)
    )
)

_SAMPLE = text(
    filled(f"SELECT t.number, v.value, CAST(t.state AS VARCHAR(16)) AS state {_VALUED}")
    + " AND t.number % :every = 0 ORDER BY t.number"
)

_STANDING = text(
    """
SELECT {state} AS state, COALESCE(m.step, 0) AS step, COUNT(*) AS trials
FROM trials t JOIN studies s ON s.study_id = t.study_id LEFT JOIN (
  SELECT trial, MAX(step) AS step FROM automl_measurements WHERE study_name = :study GROUP BY trial
) m ON m.trial = t.number WHERE s.study_name = :study GROUP BY 1, 2""".replace("{state}", STATE)
)

_LINES = filled("""
SELECT t.trial_id, t.number, {state} AS state, v.value,
  t.datetime_start AS started, t.datetime_complete AS ended
FROM trials t JOIN studies s ON s.study_id = t.study_id {direction}
{values}
WHERE s.study_name = :study AND (:every_state OR {state} IN :states)
ORDER BY {order} LIMIT :limit OFFSET :offset""")

_STEPS = text("""
SELECT i.trial_id, i.step, i.intermediate_value AS value FROM trial_intermediate_values i JOIN (
  SELECT trial_id, MAX(step) AS step FROM trial_intermediate_values WHERE trial_id IN :trials GROUP BY trial_id
) l ON l.trial_id = i.trial_id AND l.step = i.step""").bindparams(bindparam("trials", expanding=True))

_PARAMS = text("""
SELECT trial_id, param_name, param_value, distribution_json FROM trial_params
WHERE trial_id IN :trials ORDER BY param_id""").bindparams(bindparam("trials", expanding=True))

_ATTRIBUTES = text("""
SELECT trial_id, key, value_json FROM trial_user_attributes
WHERE trial_id IN :trials AND key IN ('stop_reason', 'error')""").bindparams(bindparam("trials", expanding=True))

_WORKERS = text("""
SELECT trial, worker FROM automl_attempts WHERE study_name = :study AND state = 'RUNNING' AND trial IN :numbers
""").bindparams(bindparam("numbers", expanding=True))

_CURVES = text("""
SELECT t.number, i.step, i.intermediate_value AS value FROM trial_intermediate_values i
JOIN trials t ON t.trial_id = i.trial_id
WHERE i.intermediate_value_type = 'FINITE' AND i.trial_id IN (
  SELECT t.trial_id FROM trials t JOIN studies s ON s.study_id = t.study_id
  WHERE s.study_name = :study AND t.number IN :numbers)
ORDER BY t.number, i.step""").bindparams(bindparam("numbers", expanding=True))

ORDERS: Mapping[str, str] = {
    "number": "t.number DESC",
    "best": filled("{best_first}"),
}
"""How trials may be ordered: the latest first, or the best first as everywhere (`automl.ranking`)."""


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
            started_at=min((at for each in states if (at := _instant(each.started))), default=None),
            last_at=max((at for each in states if (at := _instant(each.ended))), default=None),
            verification=None if verified is None else _verification(verified),
        )


def _direction(about: Row[Any] | None, metric: str) -> Direction:
    """The direction by Optuna, or by the metric while Optuna has not been told yet."""
    if about is not None and about.direction is not None:
        return cast("Direction", about.direction.lower())
    return METRICS[metric].direction if metric in METRICS else "minimize"


def stop_reasons(database: Database, study: str) -> dict[str, int]:
    """Ended trials of a study by stop reason, the most frequent first."""
    with database.reading("count the stop reasons") as connection:
        return {str(json.loads(row.reason)): row.trials for row in connection.execute(_REASONS, {"study": study})}


def improvements(database: Database, study: str) -> list[TrialValue]:
    """The COMPLETE trials that were better than all before them, by number."""
    with database.reading("read the improvements") as connection:
        rows = connection.execute(_IMPROVEMENTS, {"study": study})
        return [TrialValue(row.number, row.value, "COMPLETE") for row in rows]


def sampled_trials(database: Database, study: str, trials: int) -> list[TrialValue]:
    """Trials with a final value, evenly thinned to about 500. trials: how many the study has."""
    every = max(1, -(-trials // _PLACES))
    with database.reading("read a sample of the trials") as connection:
        return [TrialValue(*row) for row in connection.execute(_SAMPLE, {"study": study, "every": every})]


def standing(database: Database, study: str) -> list[Standing]:
    """Trials of a study by state and last step; empty if it has none."""
    with database.reading("read how far trials are") as connection:
        return [Standing(*row) for row in connection.execute(_STANDING, {"study": study})]


def pace(database: Database, study: str, *, seconds: float = 300.0) -> Pace | None:
    """How quickly a study was trained in the last minutes, or since its first measurement; None if it was not."""
    mine = measurements.c.study_name == study
    with database.reading("read the pace of a study") as connection:
        now: datetime = connection.execute(select(Now())).scalar_one()
        since = now - timedelta(seconds=seconds)
        last = func.max(measurements.c.step)
        before = func.coalesce(func.max(case((measurements.c.at <= since, measurements.c.step))), 0)
        gains = select((last - before).label("gain")).where(mine).group_by(measurements.c.trial).subquery()
        steps = connection.execute(select(func.sum(gains.c.gain))).scalar_one()
        first = connection.execute(
            select(func.min(measurements.c.at, type_=measurements.c.at.type)).where(mine)
        ).scalar()
    if not steps or first is None:
        return None
    return Pace(steps=int(steps), seconds=min(seconds, (now - first).total_seconds()), now=now)


def list_page(
    database: Database,
    study: str,
    *,
    order: str = "number",
    states: Sequence[str] = (),
    limit: int = 50,
    offset: int = 0,
) -> list[TrialLine]:
    """Some trials of a study. order: of `ORDERS`; states: all if empty; limit: at most 200."""
    query = text(_LINES.format(state=STATE, order=ORDERS[order]))
    asked = {"study": study, "every_state": not states, "states": list(states) or [""]}
    with database.reading("list trials") as connection:
        rows = connection.execute(
            query.bindparams(bindparam("states", expanding=True)),
            {**asked, "limit": min(limit, PAGE), "offset": offset},
        ).all()
        return _lines(connection, study, rows)


def trial_curves(database: Database, study: str, numbers: Iterable[int]) -> dict[int, list[CurvePoint]]:
    """The objective by step of some trials, by number; only those that were measured."""
    found: dict[int, list[CurvePoint]] = defaultdict(list)
    with database.reading("read curves") as connection:
        for row in connection.execute(_CURVES, {"study": study, "numbers": sorted(set(numbers))}):
            found[row.number].append(CurvePoint(row.step, row.value))
    return dict(found)


def _by_study(connection: Connection, query: TextClause, studies: Sequence[str]) -> dict[str, Row[Any]]:
    return {row.study_name: row for row in connection.execute(query, {"studies": studies})}


def _lines(connection: Connection, study: str, rows: Sequence[Row[Any]]) -> list[TrialLine]:
    ids = [row.trial_id for row in rows]
    last = {row.trial_id: row for row in connection.execute(_STEPS, {"trials": ids})}
    params: dict[int, dict[str, Scalar]] = defaultdict(dict)
    for row in connection.execute(_PARAMS, {"trials": ids}):
        params[row.trial_id][row.param_name] = decoded(row.param_value, row.distribution_json)
    told: dict[tuple[int, str], str] = {
        (row.trial_id, row.key): str(json.loads(row.value_json))
        for row in connection.execute(_ATTRIBUTES, {"trials": ids})
    }
    numbers = [row.number for row in rows if row.state == "RUNNING"]
    workers = {row.trial: row.worker for row in connection.execute(_WORKERS, {"study": study, "numbers": numbers})}
    return [
        TrialLine(
            number=row.number,
            state=row.state,
            value=row.value if row.value is not None else last[row.trial_id].value if row.trial_id in last else None,
            step=last[row.trial_id].step if row.trial_id in last else 0,
            params=params[row.trial_id],
            stop_reason=told.get((row.trial_id, "stop_reason"), ""),
            error=told.get((row.trial_id, "error"), ""),
            started_at=_instant(row.started),
            ended_at=_instant(row.ended),
            worker=workers.get(row.number),
        )
        for row in rows
    ]


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


def _instant(value: datetime | str | None) -> datetime | None:
    """Optuna's times are UTC without a zone; SQLite gives an aggregate of them as text."""
    if value is None:
        return None
    return (datetime.fromisoformat(value) if isinstance(value, str) else value).replace(tzinfo=UTC)
