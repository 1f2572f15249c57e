"""What viewers ask of a database about the trials of one study: page by page, improvements, curves, how far they are.

Aggregated in SQL, as in `automl.storage.overview`. Optuna has an index on a trial's study but none on its number, so
every query names the study.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, case, func, select, text

from automl.storage.overview import PAGE, instant
from automl.storage.ranking import filled
from automl.storage.sql import Database
from automl.storage.tables import Now, measurements
from automl.storage.trials import STATE, CurvePoint, decoded
from automl.trial import FORGETTING, BestCheckpoint, Scalar

_PLACES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLine:
    """One trial as a line of a page. value: the objective of an ended one, else the latest measurement.

    step: last measured. state: as in Optuna, or PARKED. worker: that trains it at this moment, None if none does.
    detail: what else is to be said of its end.
    Narrower than `automl.storage.trials.TrialRow`, which is what a trial is everywhere else: a page of a study of
    10,000 trials is read every two seconds, so nothing is read that it does not show, and never all trials.
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
    forgetting: float | None = None
    detail: str = ""


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
    """The number of a study's trials with this state and this last step on its grid, 0 without a measurement."""

    state: str
    step: int
    trials: int


_VALUED = """
FROM trials t JOIN studies s ON s.study_id = t.study_id {direction}
JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
WHERE s.study_name = :study"""

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
  SELECT i.trial_id, MAX(i.step) AS step FROM trial_intermediate_values i
  JOIN trials t ON t.trial_id = i.trial_id JOIN studies s ON s.study_id = t.study_id
  WHERE s.study_name = :study GROUP BY i.trial_id
) m ON m.trial_id = t.trial_id WHERE s.study_name = :study GROUP BY 1, 2""".replace("{state}", STATE)
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
WHERE trial_id IN :trials
  AND key IN ('stop_reason', 'error', 'forgetting', 'best_checkpoint')""").bindparams(
    bindparam("trials", expanding=True)
)

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
    """Some trials of a study. order: a key of `ORDERS`; states: all if empty; limit: at most 200."""
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


def _detail(row: Row[Any], best: Mapping[str, Any] | None, last: Mapping[int, Row[Any]]) -> str:
    """Why a complete trial ended that is worth its best checkpoint, and which one that is."""
    if best is None or row.state != "COMPLETE":
        return ""
    kept = BestCheckpoint(step=best["step"], metrics=best["metrics"], reason=best["reason"])
    return kept.in_words(last[row.trial_id].step)


def _lines(connection: Connection, study: str, rows: Sequence[Row[Any]]) -> list[TrialLine]:
    ids = [row.trial_id for row in rows]
    last = {row.trial_id: row for row in connection.execute(_STEPS, {"trials": ids})}
    params: dict[int, dict[str, Scalar]] = defaultdict(dict)
    for row in connection.execute(_PARAMS, {"trials": ids}):
        params[row.trial_id][row.param_name] = decoded(row.param_value, row.distribution_json)
    told: dict[tuple[int, str], Any] = {
        (row.trial_id, row.key): json.loads(row.value_json) for row in connection.execute(_ATTRIBUTES, {"trials": ids})
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
            forgetting=told.get((row.trial_id, FORGETTING)),
            detail=_detail(row, told.get((row.trial_id, "best_checkpoint")), last),
            started_at=instant(row.started),
            ended_at=instant(row.ended),
            worker=workers.get(row.number),
        )
        for row in rows
    ]
