"""Trials of a study as they are now, read by SQL.

Optuna reads a trial into objects, a quarter of a minute for 10,000; here nothing is read that is not asked for, and
nothing is made of it but the rows that are returned.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, text

from automl import ranking
from automl.errors import StudyNotFoundError
from automl.metric import Direction
from automl.storage.sql import Database
from automl.trial import BestCheckpoint, Scalar, TrialState


class CurvePoint(NamedTuple):
    """One measurement of the objective."""

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial as it is now.

    value: objective at the last measurement of an ended trial, or at its best checkpoint; None otherwise.
    checkpoint: the best one, of a complete trial that is worth it, else None.
    size: for a complete trial, what is minimised beside it (`search.also_minimize`), else None.
    steps, seconds, tokens, examples: trained so far, up to the last measurement.
    adapter: folder of its adapter, if that is still kept.
    trainable_params: LoRA and head, None if unknown.
    trained_rate: the learning rate that an ended trial was trained with, where another number was searched, else None.
    forgetting: by how much it is worse on the rows of `keep:` than the untuned model; None if that was not measured.
    error: what a failed trial said last, empty otherwise.
    is_parked: it is RUNNING, but paused.
    attempts: how often it was handed to a worker.
    curve: the objective by step, empty unless it was read too (for a report). metrics: the latest values of those
    measured beside the objective, empty unless they were read too.
    """

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Scalar] = field(default_factory=dict)
    steps: int
    seconds: float = 0.0
    stop_reason: str | None = None
    adapter: str | None = None
    trainable_params: int | None = None
    trained_rate: float | None = None
    forgetting: float | None = None
    error: str = ""
    size: float | None = None
    is_parked: bool = False
    tokens: int = 0
    examples: int = 0
    attempts: int = 0
    checkpoint: BestCheckpoint | None = None
    curve: tuple[CurvePoint, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; the curve is left out."""
        values = asdict(self)
        del values["curve"]
        return values

    @property
    def shown_state(self) -> str:
        """State as people see it."""
        return PARKED if self.is_parked else str(self.state)

    @property
    def shown_reason(self) -> str:
        """Why it ended, as people see it: `finished: overfits since step 40, best at step 40`."""
        said = self.checkpoint.in_words(self.steps) if self.checkpoint is not None else ""
        return ": ".join(part for part in (self.stop_reason, said) if part)


PARKED = "PARKED"
"""Shown as the state of a trial that is paused; to Optuna it is RUNNING."""

STATE = """CASE WHEN t.state = 'RUNNING' AND EXISTS (
    SELECT 1 FROM automl_attempts a WHERE a.study_name = s.study_name AND a.trial = t.number AND a.state = 'PARKED'
    AND NOT EXISTS (SELECT 1 FROM automl_attempts b
      WHERE b.study_name = a.study_name AND b.trial = a.trial AND b.number > a.number)
  ) THEN 'PARKED' ELSE CAST(t.state AS VARCHAR(16)) END"""
"""State of a trial t of a study s as people see it. To Optuna, which knows no pause, a parked trial is RUNNING."""

_STUDY = text("SELECT study_id FROM studies WHERE study_name = :study")
_STUDIES = text("SELECT study_name FROM studies ORDER BY study_name")

_OUTLINES = text(
    """
SELECT t.trial_id, t.number, {state} AS state, v.value, w.value AS size
FROM trials t JOIN studies s ON s.study_id = t.study_id
LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 AND v.value_type = 'FINITE'
LEFT JOIN trial_values w ON w.trial_id = t.trial_id AND w.objective = 1 AND w.value_type = 'FINITE'
WHERE t.study_id = :id AND t.state <> 'WAITING' ORDER BY t.number""".replace("{state}", STATE)
)

_LAST = text("""
SELECT i.trial_id, i.step, i.intermediate_value AS value FROM trial_intermediate_values i JOIN (
  SELECT j.trial_id, MAX(j.step) AS step FROM trial_intermediate_values j JOIN trials t ON t.trial_id = j.trial_id
  WHERE t.study_id = :id GROUP BY j.trial_id
) l ON l.trial_id = i.trial_id AND l.step = i.step""")

_PARAMS = """
SELECT p.trial_id, p.param_name, p.param_value, p.distribution_json FROM trial_params p
WHERE {chosen} ORDER BY p.param_id"""

_ATTRIBUTES = """
SELECT p.trial_id, p.key, p.value_json FROM trial_user_attributes p
WHERE {chosen} AND p.key IN ('seconds', 'tokens', 'examples', 'steps', 'stop_reason', 'trainable_params',
  'trained_rate', 'forgetting', 'error', 'best_checkpoint')"""

# Seconds and tokens grow with the step, so the row of a trial's last step holds what it has cost.
_SPENT = """
SELECT p.trial, MAX(p.step) AS steps, MAX(p.seconds) AS seconds, MAX(p.tokens) AS tokens,
  COALESCE(MAX(p.examples), 0) AS examples
FROM automl_measurements p
WHERE p.study_name = :study AND {chosen} GROUP BY p.trial"""

_METRICS = """
SELECT trial, metric, value FROM automl_metric_values
WHERE study_name = :study AND metric IN :names ORDER BY trial, step"""

_ATTEMPTS = text("""
SELECT trial, COUNT(*) AS attempts FROM automl_attempts WHERE study_name = :study GROUP BY trial""")

_ADAPTERS = text("""
SELECT trial, path FROM automl_artifacts WHERE study_name = :study AND deleted_at IS NULL ORDER BY trial, kind""")

_ALL = "p.trial_id IN (SELECT t.trial_id FROM trials t WHERE t.study_id = :id)"
_FEW = 1000
"""Up to so many trials are asked for one by one, more all together."""

_Outlines = dict[int, TrialRow]
"""Trials by Optuna's id; what costs most to read is still missing."""


def list_trials(database: Database, study: str) -> list[TrialRow]:
    """All trials by number, those waiting to be started left out. Raises StudyNotFoundError."""
    with database.reading(f"read the trials of study {study!r}") as connection:
        return _completed(connection, study, _outlines(connection, study), all_of=_study_id(connection, study))


def best_trials(database: Database, study: str, direction: Direction, limit: int) -> list[TrialRow]:
    """The first of all trials in the order of `automl.ranking`, at most `limit`. Raises StudyNotFoundError."""
    with database.reading(f"read the best trials of study {study!r}") as connection:
        outlines = _outlines(connection, study)
        ids = {row.number: trial_id for trial_id, row in outlines.items()}
        best = {ids[row.number]: row for row in ranking.ranked(outlines.values(), direction)[:limit]}
        return _completed(connection, study, best, all_of=_study_id(connection, study) if limit > _FEW else None)


def with_metrics(database: Database, study: str, rows: Sequence[TrialRow], names: Sequence[str]) -> list[TrialRow]:
    """The trials with their latest values of these metrics, or those at their best checkpoints."""
    if not names:
        return list(rows)
    found: dict[int, dict[str, float]] = defaultdict(dict)
    query = text(_METRICS).bindparams(bindparam("names", expanding=True))
    with database.reading(f"read the metrics of study {study!r}") as connection:
        for trial, metric, value in connection.execute(query, {"study": study, "names": names}):
            found[trial][metric] = value
    for row in rows:
        if row.checkpoint is not None:
            known = row.checkpoint.metrics
            found[row.number] = {name: known[name] for name in names if name in known}
    return [replace(row, metrics=found.get(row.number, {})) for row in rows]


def counts_of(rows: Iterable[TrialRow]) -> dict[str, int]:
    """Number of trials by state, every state named; parked ones are RUNNING."""
    counted = Counter(row.state for row in rows)
    return {str(state): counted[state] for state in TrialState}


def _study_id(connection: Connection, study: str) -> int:
    found = connection.execute(_STUDY, {"study": study}).scalar()
    if found is None:
        known = ", ".join(connection.execute(_STUDIES).scalars()) or "none"
        raise StudyNotFoundError(f"no study {study!r} in the database; there is: {known}")
    return int(found)


def _outlines(connection: Connection, study: str) -> _Outlines:
    mine = {"id": _study_id(connection, study)}
    last = {trial: (step, value) for trial, step, value in connection.execute(_LAST, mine)}
    found: _Outlines = {}
    for trial_id, number, state, value, size in connection.execute(_OUTLINES, mine):
        step, measured = last.get(trial_id, (None, None))
        if state == TrialState.PRUNED and step is not None:  # Optuna takes the last one over only without a second
            value = measured
        is_complete, is_parked = state == TrialState.COMPLETE, state == PARKED
        found[trial_id] = TrialRow(
            number=number,
            state=TrialState.RUNNING if is_parked else TrialState(state),
            is_parked=is_parked,
            value=value if state != TrialState.RUNNING and not is_parked else None,
            steps=step or 0,
            size=size if is_complete else None,
        )
    return found


def _completed(connection: Connection, study: str, rows: _Outlines, *, all_of: int | None) -> list[TrialRow]:
    """The rows with everything else. all_of: the id of the study, to read what belongs to any of its trials."""
    ids = list(rows)
    params: dict[int, dict[str, Scalar]] = defaultdict(dict)
    for trial_id, name, value, distribution in _chosen(connection, _PARAMS, ids, all_of):
        params[trial_id][name] = decoded(value, distribution)
    told: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, value in _chosen(connection, _ATTRIBUTES, ids, all_of):
        told[trial_id][key] = json.loads(value)
    spent = _spent(connection, study, [row.number for trial, row in rows.items() if "tokens" not in told[trial]])
    known = {trial: {**spent.get(row.number, {}), **told[trial]} for trial, row in rows.items()}
    attempts = {row.trial: row.attempts for row in connection.execute(_ATTEMPTS, {"study": study})}
    adapters = {row.trial: row.path for row in connection.execute(_ADAPTERS, {"study": study})}
    return [
        replace(
            row,
            params=params[trial_id],
            steps=known[trial_id].get("steps", row.steps),
            seconds=known[trial_id].get("seconds", 0.0),
            tokens=known[trial_id].get("tokens", 0),
            examples=known[trial_id].get("examples", 0),
            stop_reason=known[trial_id].get("stop_reason"),
            adapter=adapters.get(row.number),
            attempts=attempts.get(row.number, 0),
            trainable_params=_whole(known[trial_id].get("trainable_params")),
            trained_rate=known[trial_id].get("trained_rate"),
            forgetting=known[trial_id].get("forgetting"),
            error=str(known[trial_id].get("error", "")),
            checkpoint=_checkpoint(known[trial_id], row),
        )
        for trial_id, row in rows.items()
    ]


def _checkpoint(told: Mapping[str, Any], row: TrialRow) -> BestCheckpoint | None:
    if row.state != TrialState.COMPLETE or (kept := told.get("best_checkpoint")) is None:
        return None
    return BestCheckpoint(step=kept["step"], metrics=kept["metrics"], reason=kept["reason"])


def _chosen(connection: Connection, query: str, ids: Sequence[int], all_of: int | None) -> Iterable[Any]:
    if all_of is not None:
        return connection.execute(text(query.format(chosen=_ALL)), {"id": all_of})
    some = text(query.format(chosen="p.trial_id IN :ids")).bindparams(bindparam("ids", expanding=True))
    return connection.execute(some, {"ids": ids})


def _spent(connection: Connection, study: str, numbers: Sequence[int]) -> dict[int, dict[str, float]]:
    """Steps, seconds, tokens and examples of trials that have not ended, by number."""
    if not numbers:
        return {}
    if len(numbers) > _FEW:
        rows = connection.execute(text(_SPENT.format(chosen="1 = 1")), {"study": study})
    else:
        few = text(_SPENT.format(chosen="p.trial IN :numbers")).bindparams(bindparam("numbers", expanding=True))
        rows = connection.execute(few, {"study": study, "numbers": numbers})
    return {
        row.trial: {name: getattr(row, name) for name in ("steps", "seconds", "tokens", "examples")} for row in rows
    }


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def decoded(value: float, distribution: str) -> Scalar:
    """Optuna keeps a categorical value as the index of its choice."""
    name, choices = _distribution(distribution)
    if choices is not None:
        return choices[int(value)]
    return int(value) if name == "IntDistribution" else value


@cache
def _distribution(text: str) -> tuple[str, tuple[Scalar, ...] | None]:
    """Name and, of a categorical one, choices. Many trials have the same few."""
    read = json.loads(text)
    choices = read["attributes"].get("choices")
    return read["name"], None if choices is None else tuple(choices)
