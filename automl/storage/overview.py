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
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, text

from automl.storage.sql import Database
from automl.storage.tables import Now, importances, sweeps
from automl.trial import ModuleImportance, Scalar

PAGE = 200
"""Most trials that `list_page` returns at once."""
_PLACES = 500
_RECENT = 50


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
    """A study in numbers. counts: trials by state. best: objective of the best COMPLETE trial on validation rows.

    steps, seconds, tokens: trained so far, by all trials. driver: who holds the lease, None if nobody does.
    """

    study: str
    metric: str
    direction: str
    space_text: str
    space_sha256: str
    runs: int
    driver: str | None
    created_at: datetime
    counts: Mapping[str, int] = field(default_factory=dict)
    best: float | None = None
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    started_at: datetime | None = None
    last_at: datetime | None = None
    verification: VerificationState | None = None

    @property
    def ended(self) -> int:
        """Trials that count against the budget."""
        return self.counts.get("COMPLETE", 0) + self.counts.get("PRUNED", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLine:
    """One trial. value: of an ended one the objective, of a running one the latest measurement. step: last measured.

    worker: that trains it at this moment, None if none does.
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


class Place(NamedTuple):
    """A trial in the history of a study."""

    number: int
    value: float
    state: str


class CurvePoint(NamedTuple):
    """One measurement of the objective."""

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How quickly trials end: `trials` of them within the `seconds` up to the latest. now: the database's clock."""

    trials: int
    seconds: float
    latest: datetime
    now: datetime


_VALUED = """
FROM trials t JOIN studies s ON s.study_id = t.study_id
JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
WHERE s.study_name = :study"""

_COUNTS = text("""
SELECT s.study_name, CAST(t.state AS VARCHAR(16)) AS state, COUNT(*) AS trials,
  MIN(t.datetime_start) AS started, MAX(t.datetime_complete) AS ended
FROM trials t JOIN studies s ON s.study_id = t.study_id
WHERE (CAST(:study AS VARCHAR(255)) IS NULL OR s.study_name = :study) GROUP BY s.study_name, t.state""")

_ABOUT = text("""
SELECT s.study_name, d.direction, o.value_json AS metric
FROM studies s LEFT JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
LEFT JOIN study_user_attributes o ON o.study_id = s.study_id AND o.key = 'objective'
WHERE (CAST(:study AS VARCHAR(255)) IS NULL OR s.study_name = :study)""")

_BEST = text("""
SELECT s.study_name, MIN(v.value) AS low, MAX(v.value) AS high
FROM trials t JOIN studies s ON s.study_id = t.study_id
JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
WHERE t.state = 'COMPLETE' AND (CAST(:study AS VARCHAR(255)) IS NULL OR s.study_name = :study)
GROUP BY s.study_name""")

# Seconds and tokens grow with the step, so the row of a trial's last step holds what it has cost.
_SPENT = text("""
SELECT m.study_name, SUM(m.step) AS steps, SUM(m.seconds) AS seconds, SUM(m.tokens) AS tokens
FROM automl_measurements m JOIN (
  SELECT study_name, trial, MAX(step) AS step FROM automl_measurements
  WHERE (CAST(:study AS VARCHAR(255)) IS NULL OR study_name = :study) GROUP BY study_name, trial
) l ON l.study_name = m.study_name AND l.trial = m.trial AND l.step = m.step GROUP BY m.study_name""")

_VERIFIED = text("""
SELECT v.study_name, v.number, v.state, v.result FROM automl_verifications v JOIN (
  SELECT study_name, MAX(number) AS number FROM automl_verifications
  WHERE (CAST(:study AS VARCHAR(255)) IS NULL OR study_name = :study) GROUP BY study_name
) l ON l.study_name = v.study_name AND l.number = v.number""")

_REASONS = text("""
SELECT r.value_json AS reason, COUNT(*) AS trials FROM trial_user_attributes r
WHERE r.key = 'stop_reason' AND r.trial_id IN (
  SELECT t.trial_id FROM trials t JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :study)
GROUP BY r.value_json ORDER BY COUNT(*) DESC, r.value_json""")

# A trial is an improvement if no COMPLETE trial with a smaller number is at least as good: few rows of many.
_IMPROVEMENTS = """
SELECT number, value FROM (
  SELECT t.number, v.value, {extreme}(v.value) OVER (
    ORDER BY t.number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
  {valued} AND t.state = 'COMPLETE') w
WHERE before IS NULL OR value {better} before ORDER BY number"""

_SAMPLE = text(
    f"SELECT t.number, v.value, CAST(t.state AS VARCHAR(16)) AS state {_VALUED}"
    " AND t.number % :every = 0 ORDER BY t.number"
)

_ENDS = text("""
SELECT t.datetime_complete AS at FROM trials t JOIN studies s ON s.study_id = t.study_id
WHERE s.study_name = :study AND t.state IN ('COMPLETE', 'PRUNED') AND t.datetime_complete IS NOT NULL
ORDER BY t.datetime_complete DESC LIMIT :n""")

_LINES = """
SELECT t.trial_id, t.number, CAST(t.state AS VARCHAR(16)) AS state, v.value,
  t.datetime_start AS started, t.datetime_complete AS ended
FROM trials t JOIN studies s ON s.study_id = t.study_id
LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
WHERE s.study_name = :study AND (:every_state OR CAST(t.state AS VARCHAR(16)) IN :states)
ORDER BY {order} LIMIT :limit OFFSET :offset"""

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
    "best": "CASE WHEN t.state = 'COMPLETE' THEN 0 ELSE 1 END, CASE WHEN v.value IS NULL THEN 1 ELSE 0 END, {value},"
    " t.number",
}
"""How trials may be ordered: the latest first, or the best first (complete before all others)."""


def study_totals(database: Database, study: str | None = None) -> list[StudyTotals]:
    """Totals of all studies that a sweep was started for, or of one, by name; empty if there is none."""
    with database.reading("sum up the studies") as connection:
        query = select(sweeps, (sweeps.c.lease_until > Now()).label("driven")).order_by(sweeps.c.study_name)
        rows = connection.execute(query if study is None else query.where(sweeps.c.study_name == study)).all()
        known = _Known(connection, study)
    return [known.totals(row) for row in rows]


class _Known:
    """The answers to the questions about all studies, by study."""

    def __init__(self, connection: Connection, study: str | None) -> None:
        self._about = _by_study(connection, _ABOUT, study)
        self._best = _by_study(connection, _BEST, study)
        self._spent = _by_study(connection, _SPENT, study)
        self._verified = _by_study(connection, _VERIFIED, study)
        self._states: dict[str, list[Row[Any]]] = defaultdict(list)
        for row in connection.execute(_COUNTS, {"study": study}):
            self._states[row.study_name].append(row)

    def totals(self, row: Row[Any]) -> StudyTotals:
        name = row.study_name
        about, best, spent = self._about.get(name), self._best.get(name), self._spent.get(name)
        states, verified = self._states.get(name, []), self._verified.get(name)
        maximize = about is not None and about.direction == "MAXIMIZE"
        return StudyTotals(
            study=name,
            metric=str(json.loads(about.metric)) if about is not None and about.metric else "",
            direction="maximize" if maximize else "minimize",
            space_text=row.space_text,
            space_sha256=row.space_sha256,
            runs=row.runs,
            driver=row.owner if row.driven else None,
            created_at=row.created_at,
            counts={state.state: state.trials for state in states},
            best=None if best is None else best.high if maximize else best.low,
            steps=int(spent.steps) if spent is not None else 0,
            seconds=float(spent.seconds) if spent is not None else 0.0,
            tokens=int(spent.tokens) if spent is not None else 0,
            started_at=min((at for each in states if (at := _instant(each.started))), default=None),
            last_at=max((at for each in states if (at := _instant(each.ended))), default=None),
            verification=None if verified is None else _verification(verified),
        )


def stop_reasons(database: Database, study: str) -> dict[str, int]:
    """Ended trials of a study by stop reason, the most frequent first."""
    with database.reading("count the stop reasons") as connection:
        return {str(json.loads(row.reason)): row.trials for row in connection.execute(_REASONS, {"study": study})}


def improvements(database: Database, study: str, direction: str) -> list[Place]:
    """The COMPLETE trials that were better than all before them, by number."""
    extreme, better = ("MAX", ">") if direction == "maximize" else ("MIN", "<")
    query = _IMPROVEMENTS.format(extreme=extreme, better=better, valued=_VALUED)
    with database.reading("read the improvements") as connection:
        rows = connection.execute(text(query), {"study": study})
        return [Place(row.number, row.value, "COMPLETE") for row in rows]


def sampled_trials(database: Database, study: str, trials: int) -> list[Place]:
    """Trials with a final value, evenly thinned to about 500. trials: how many the study has."""
    every = max(1, -(-trials // _PLACES))
    with database.reading("read a sample of the trials") as connection:
        return [Place(*row) for row in connection.execute(_SAMPLE, {"study": study, "every": every})]


def pace(database: Database, study: str) -> Pace | None:
    """How quickly the latest trials ended (at most 50); None if fewer than three have."""
    with database.reading("read the pace of a study") as connection:
        ends = [_instant(row.at) for row in connection.execute(_ENDS, {"study": study, "n": _RECENT})]
        now = connection.execute(select(Now())).scalar_one()
    known = [at for at in ends if at is not None]
    if len(known) < 3:
        return None
    seconds = (known[0] - known[-1]).total_seconds()
    return Pace(trials=len(known) - 1, seconds=seconds, latest=known[0], now=now)


def list_page(
    database: Database,
    study: str,
    direction: str,
    *,
    order: str = "number",
    states: Sequence[str] = (),
    limit: int = 50,
    offset: int = 0,
) -> list[TrialLine]:
    """Some trials of a study. order: of `ORDERS`; states: all if empty; limit: at most 200."""
    value = "v.value DESC" if direction == "maximize" else "v.value"
    query = text(_LINES.format(order=ORDERS[order].replace("{value}", value)))
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


def importances_of(database: Database, study: str, trials: int) -> dict[int, tuple[ModuleImportance, ...]]:
    """Importances of the latest `trials` trials of a study that have any, by trial."""
    table = importances
    mine = table.c.study_name == study
    newest = select(table.c.trial).where(mine).distinct().order_by(table.c.trial.desc()).limit(trials)
    found: dict[int, list[ModuleImportance]] = defaultdict(list)
    fields = tuple(ModuleImportance.__dataclass_fields__)
    with database.reading("read importances") as connection:
        for row in connection.execute(select(table).where(mine, table.c.trial.in_(newest))):
            values = {name: getattr(row, name) for name in fields}
            found[row.trial].append(ModuleImportance(**{**values, "components": tuple(row.components)}))
    return {trial: tuple(modules) for trial, modules in sorted(found.items())}


def _by_study(connection: Connection, query: Any, study: str | None) -> dict[str, Row[Any]]:
    return {row.study_name: row for row in connection.execute(query, {"study": study})}


def _lines(connection: Connection, study: str, rows: Sequence[Row[Any]]) -> list[TrialLine]:
    ids = [row.trial_id for row in rows]
    last = {row.trial_id: row for row in connection.execute(_STEPS, {"trials": ids})}
    params: dict[int, dict[str, Scalar]] = defaultdict(dict)
    for row in connection.execute(_PARAMS, {"trials": ids}):
        params[row.trial_id][row.param_name] = _decoded(row.param_value, json.loads(row.distribution_json))
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


def _decoded(value: float, distribution: Mapping[str, Any]) -> Scalar:
    """Optuna keeps a categorical value as the index of its choice."""
    name, attributes = distribution["name"], distribution["attributes"]
    if name == "CategoricalDistribution":
        choice: Scalar = attributes["choices"][int(value)]
        return choice
    return int(value) if name == "IntDistribution" else value


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
