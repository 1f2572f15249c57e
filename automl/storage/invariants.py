"""What must hold in a database and on disk after anything, as queries that return no row; and what can be repaired.

I1 to I10 concern Optuna's tables, I11 to I13, I18 and I19 our attempts, I15 the artifacts on disk, I20 to I22 the
agreement of both kinds of tables, and I23 that of values where trials make different steps (`automl.space.length`).
Optuna's tables are the truth of parameters, values and final states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, TextClause, bindparam, select, text

from automl.storage.abandoned import close_abandoned
from automl.storage.artifacts import digest_folder
from automl.storage.connect import Guard
from automl.storage.lease import drivers, held
from automl.storage.sql import Database
from automl.storage.tables import artifacts
from automl.trial import StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """An invariant that does not hold: its id, what is wrong, and the offending rows (study first)."""

    id: str
    description: str
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invariant:
    """A query for offending rows. It begins with the study's name and holds `{study}`, a condition on it.

    when_finished: holds only after the search has ended (exit code 0).
    """

    id: str
    description: str
    query: str
    when_finished: bool = False


_INVARIANTS = (
    _Invariant(
        id="I1",
        description="COMPLETE trial without exactly one value per objective",
        query="""
        SELECT s.study_name, t.number FROM trials t JOIN studies s ON s.study_id = t.study_id
        LEFT JOIN trial_values v ON v.trial_id = t.trial_id
        WHERE t.state = 'COMPLETE' AND {study}
        GROUP BY s.study_name, t.study_id, t.number, t.trial_id HAVING COUNT(v.trial_value_id) <>
          (SELECT COUNT(*) FROM study_directions d WHERE d.study_id = t.study_id)""",
    ),
    _Invariant(
        id="I2",
        description="trial number used more than once",
        query="""
        SELECT s.study_name, t.number, COUNT(*) FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE {study} GROUP BY s.study_name, t.number HAVING COUNT(*) > 1""",
    ),
    _Invariant(
        id="I3",
        description="trial numbers are not 0, 1, 2, … without a gap",
        query="""
        SELECT s.study_name, COUNT(*), MAX(t.number) FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE {study} GROUP BY s.study_name HAVING COUNT(*) <> MAX(t.number) + 1 OR MIN(t.number) <> 0""",
    ),
    _Invariant(
        id="I4",
        description="finished trial with a value that is not finite",
        query="""
        SELECT s.study_name, t.number, v.value_type FROM trial_values v
        JOIN trials t ON t.trial_id = v.trial_id JOIN studies s ON s.study_id = t.study_id
        WHERE t.state IN ('COMPLETE', 'PRUNED') AND v.value_type <> 'FINITE' AND {study}""",
    ),
    _Invariant(
        id="I5",
        description="trial still RUNNING or WAITING after the search has ended",
        query="""
        SELECT s.study_name, t.number, t.state FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE t.state IN ('RUNNING', 'WAITING') AND {study}""",
        when_finished=True,
    ),
    _Invariant(
        id="I6",
        description="more COMPLETE and PRUNED trials than asked for",
        query="""
        SELECT s.study_name, COUNT(*) FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE t.state IN ('COMPLETE', 'PRUNED') AND {study}
        GROUP BY s.study_name HAVING COUNT(*) > :max_trials""",
    ),
    _Invariant(
        id="I7",
        description="finished trial whose times are missing or in the wrong order",
        query="""
        SELECT s.study_name, t.number FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE t.state IN ('COMPLETE', 'PRUNED', 'FAIL') AND {study} AND (t.datetime_start IS NULL
          OR t.datetime_complete IS NULL OR t.datetime_complete < t.datetime_start)""",
    ),
    _Invariant(
        id="I8",
        description="final value on a trial that is RUNNING, WAITING or FAIL",
        query="""
        SELECT s.study_name, t.number, t.state FROM trial_values v
        JOIN trials t ON t.trial_id = v.trial_id JOIN studies s ON s.study_id = t.study_id
        WHERE t.state IN ('RUNNING', 'WAITING', 'FAIL') AND {study}""",
    ),
    _Invariant(
        id="I9",
        description="PRUNED trial without a report (and neither diverged nor out of memory)",
        query="""
        SELECT s.study_name, t.number FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE t.state = 'PRUNED' AND {study}
        AND NOT EXISTS (SELECT 1 FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id)
        AND NOT EXISTS (SELECT 1 FROM trial_user_attributes r WHERE r.trial_id = t.trial_id
          AND r.key = 'stop_reason' AND r.value_json IN ('"diverged"', '"oom"'))""",
    ),
    _Invariant(
        id="I10",
        description="COMPLETE trial without parameters",
        query="""
        SELECT s.study_name, t.number FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE t.state = 'COMPLETE' AND {study}
        AND NOT EXISTS (SELECT 1 FROM trial_params p WHERE p.trial_id = t.trial_id)""",
    ),
    _Invariant(
        id="I11",
        description="trial with more than one SUCCEEDED attempt",
        query="""
        SELECT s.study_name, s.trial, COUNT(*) FROM automl_attempts s WHERE s.state = 'SUCCEEDED' AND {study}
        GROUP BY s.study_name, s.trial HAVING COUNT(*) > 1""",
    ),
    _Invariant(
        id="I12",
        description="attempts of a trial are not numbered 1, 2, 3, … in the order of the runs",
        query="""
        SELECT s.study_name, s.trial, s.number FROM automl_attempts s
        LEFT JOIN automl_attempts b ON b.study_name = s.study_name AND b.trial = s.trial AND b.number = s.number - 1
        WHERE s.number > 1 AND {study} AND (b.number IS NULL OR b.run > s.run)""",
    ),
    _Invariant(
        id="I13",
        description="attempt RUNNING although nobody drives the study",
        query="""
        SELECT s.study_name, s.trial, s.number FROM automl_attempts s
        WHERE s.state = 'RUNNING' AND {study} AND s.study_name NOT IN :driven""",
    ),
    _Invariant(
        id="I18",
        description="two attempts of one trial at the same time",
        query="""
        SELECT s.study_name, s.trial, s.number, b.number FROM automl_attempts s
        JOIN automl_attempts b ON b.study_name = s.study_name AND b.trial = s.trial AND b.number > s.number
        WHERE {study} AND (s.ended_at IS NULL OR b.started_at < s.ended_at)""",
    ),
    _Invariant(
        id="I19",
        description="attempt without an end or without a reason",
        query="""
        SELECT s.study_name, s.trial, s.number, s.state, s.reason FROM automl_attempts s
        WHERE {study} AND (s.ended_at IS NULL OR s.reason = '')""",
        when_finished=True,
    ),
    _Invariant(
        id="I20",
        description="outcome of a trial and of its attempts disagree",
        query="""
        SELECT s.study_name, t.number, t.state, a.state FROM trials t JOIN studies s ON s.study_id = t.study_id
        JOIN automl_sweeps w ON w.study_name = s.study_name
        LEFT JOIN automl_attempts a ON a.study_name = s.study_name AND a.trial = t.number
          AND a.number = (SELECT MAX(l.number) FROM automl_attempts l
            WHERE l.study_name = s.study_name AND l.trial = t.number)
        WHERE {study} AND (
          (t.state IN ('COMPLETE', 'PRUNED') AND a.state IS NULL)
          OR (t.state = 'COMPLETE' AND a.state = 'FAILED')
          OR (t.state = 'RUNNING' AND a.state IN ('SUCCEEDED', 'FAILED') AND NOT EXISTS (
            SELECT 1 FROM trial_user_attributes r WHERE r.trial_id = t.trial_id AND r.key = 'stop_reason')))""",
    ),
    _Invariant(
        id="I21",
        description="step that only Optuna's tables, or only ours, have a value for",
        query="""
        WITH named AS MATERIALIZED (  -- Optuna has no index on a trial's number
          SELECT s.study_name, t.number, t.state, t.trial_id FROM trials t JOIN studies s ON s.study_id = t.study_id
        )
        SELECT s.study_name, t.number, i.step FROM trial_intermediate_values i
        JOIN trials t ON t.trial_id = i.trial_id JOIN studies s ON s.study_id = t.study_id
        JOIN automl_sweeps w ON w.study_name = s.study_name
        WHERE {study} AND {one_grid} AND NOT EXISTS (SELECT 1 FROM automl_measurements m
          WHERE m.study_name = s.study_name AND m.trial = t.number AND m.step = i.step)
        UNION ALL
        SELECT s.study_name, s.trial, s.step FROM automl_measurements s
        LEFT JOIN named t ON t.study_name = s.study_name AND t.number = s.trial
        WHERE {study} AND {one_grid} AND (t.trial_id IS NULL OR t.state <> 'RUNNING') AND NOT EXISTS (
          SELECT 1 FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id AND i.step = s.step)""",
    ),
    _Invariant(
        id="I22",
        description="objective at a step differs between Optuna's tables and ours",
        query="""
        SELECT s.study_name, t.number, i.step, i.intermediate_value, v.value FROM trial_intermediate_values i
        JOIN trials t ON t.trial_id = i.trial_id JOIN studies s ON s.study_id = t.study_id
        JOIN study_user_attributes o ON o.study_id = s.study_id AND o.key = 'objective'
        JOIN automl_metric_values v ON v.study_name = s.study_name AND v.trial = t.number AND v.step = i.step
          AND v.metric = REPLACE(o.value_json, '"', '')
        WHERE {study} AND {one_grid} AND (i.intermediate_value IS NULL OR i.intermediate_value <> v.value)""",
    ),
    _Invariant(
        id="I23",
        description="value that only Optuna's tables, or only ours, have of a trial with steps of its own",
        query="""
        SELECT s.study_name, t.number, i.step FROM trial_intermediate_values i
        JOIN trials t ON t.trial_id = i.trial_id JOIN studies s ON s.study_id = t.study_id
        JOIN study_user_attributes g ON g.study_id = s.study_id AND g.key = 'step_rows'
        JOIN study_user_attributes o ON o.study_id = s.study_id AND o.key = 'objective'
        WHERE {study} AND NOT EXISTS (SELECT 1 FROM automl_metric_values v
          WHERE v.study_name = s.study_name AND v.trial = t.number AND v.metric = REPLACE(o.value_json, '"', '')
          AND v.value = i.intermediate_value)
        UNION ALL
        SELECT s.study_name, t.number, v.step FROM trials t JOIN studies s ON s.study_id = t.study_id
        JOIN study_user_attributes g ON g.study_id = s.study_id AND g.key = 'step_rows'
        JOIN study_user_attributes o ON o.study_id = s.study_id AND o.key = 'objective'
        JOIN automl_metric_values v ON v.study_name = s.study_name AND v.trial = t.number
          AND v.metric = REPLACE(o.value_json, '"', '')
        WHERE {study} AND t.state <> 'RUNNING' AND NOT EXISTS (SELECT 1 FROM trial_intermediate_values i
          WHERE i.trial_id = t.trial_id AND i.intermediate_value = v.value)""",
    ),
)

_ONE_GRID = """NOT EXISTS (
          SELECT 1 FROM studies x JOIN study_user_attributes g ON g.study_id = x.study_id AND g.key = 'step_rows'
          WHERE x.study_name = s.study_name)"""
"""Whether all trials of a study make the same steps, so that Optuna is told them as they are."""

# A trial killed inside `ask`: no parameters, none enqueued, never handed out.
_UNRESUMABLE = text(
    """
    SELECT t.trial_id, t.number FROM trials t JOIN studies s ON s.study_id = t.study_id
    WHERE s.study_name = :study AND t.state = 'RUNNING'
    AND NOT EXISTS (SELECT 1 FROM trial_params p WHERE p.trial_id = t.trial_id)
    AND NOT EXISTS (SELECT 1 FROM trial_system_attributes e WHERE e.trial_id = t.trial_id AND e.key = 'fixed_params')
    AND NOT EXISTS (SELECT 1 FROM automl_attempts a WHERE a.study_name = s.study_name AND a.trial = t.number)
    ORDER BY t.number
    """
)


def check(
    database: Database, study: str | None, *, finished: bool, max_trials: int | None = None, files: bool = True
) -> list[Violation]:
    """Invariants that do not hold in one study, or in the whole database; an empty list if all do.

    finished: the search has ended (exit code 0), so nothing may be in progress and no folder be unaccounted for.
    max_trials: the budget, if it is to be checked. files: also read the artifacts on disk. Changes nothing.
    """
    found = []
    with database.reading("check the invariants") as connection:
        driven = [driver.study for driver in drivers(connection, study)]
        values = {"study": study, "max_trials": max_trials, "driven": driven or [""]}
        for invariant in _INVARIANTS:
            if (invariant.when_finished and not finished) or (invariant.id == "I6" and max_trials is None):
                continue
            rows = tuple(tuple(row) for row in connection.execute(_statement(invariant), values))
            found.append(Violation(id=invariant.id, description=invariant.description, rows=rows))
        if files:
            kept = _kept_artifacts(connection, study)
            found.extend(_check_files(kept, finished=finished))
    return [violation for violation in found if violation.rows]


def repair(database: Database, study: str | None) -> list[str]:
    """Close what a dead driver has left open in one study or all; returns one line for each change.

    The lease of a driver that has gone is given back. Attempts still RUNNING get the outcome of their trial, or LOST.
    Trials that were killed before they had parameters become FAIL. Artifacts whose folder is gone are marked deleted.
    Trials that can be resumed stay RUNNING.
    Raises StudyBusyError if a live driver holds the study.
    """
    names = database.study_names() if study is None else [study]
    return [change for name in names for change in _repair_study(database, name)]


def _statement(invariant: _Invariant) -> TextClause:
    study = "(CAST(:study AS VARCHAR(255)) IS NULL OR s.study_name = :study)"
    statement = text(invariant.query.replace("{study}", study).replace("{one_grid}", _ONE_GRID))
    return statement.bindparams(bindparam("driven", expanding=True)) if ":driven" in invariant.query else statement


def _kept_artifacts(connection: Connection, study: str | None) -> list[tuple[str, int, str, str]]:
    query = select(artifacts.c.study_name, artifacts.c.trial, artifacts.c.path, artifacts.c.sha256)
    query = query.where(artifacts.c.deleted_at.is_(None)).order_by(artifacts.c.study_name, artifacts.c.trial)
    if study is not None:
        query = query.where(artifacts.c.study_name == study)
    return [(row.study_name, row.trial, row.path, row.sha256) for row in connection.execute(query)]


def _check_files(kept: Sequence[tuple[str, int, str, str]], *, finished: bool) -> Iterator[Violation]:
    """I15: recorded artifacts and folders on disk are the same, with the same contents."""
    missing = [row for row in kept if not Path(row[2]).is_dir()]
    changed = [row for row in kept if row not in missing and digest_folder(row[2]).sha256 != row[3]]
    yield Violation(id="I15", description="recorded artifact that is not on disk", rows=_places(missing))
    yield Violation(id="I15", description="artifact whose contents are not those recorded", rows=_places(changed))
    if finished:
        recorded = {Path(path).resolve() for _, _, path, _ in kept}
        studies = {Path(path).resolve().parent: study for study, _, path, _ in kept}
        orphans = [
            (study, str(folder))
            for parent, study in sorted(studies.items())
            if parent.is_dir()
            for folder in sorted(parent.iterdir())
            if folder.is_dir() and folder not in recorded
        ]
        yield Violation(id="I15", description="folder beside the artifacts that is not recorded", rows=tuple(orphans))


def _places(rows: Sequence[tuple[str, int, str, str]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(row[:3] for row in rows)


def _repair_study(database: Database, study: str) -> list[str]:
    gone = database.store(study).sweep().owner
    with held(database, study) as guard:
        with database.writing(f"repair study {study!r}") as connection:
            changes = close_abandoned(connection, study)
            unresumable = connection.execute(_UNRESUMABLE, {"study": study}).all()
            guard(connection)
        if gone is not None:
            changes.insert(0, f"lease of {gone} given back: that driver has gone")
        changes += _fail(database, [(row.trial_id, row.number) for row in unresumable], guard)
        store = database.store(study, guard)
        for artifact in store.artifacts():
            if not Path(artifact.path).exists():
                store.delete_artifact(artifact.trial, artifact.kind)
                changes.append(f"{artifact.kind} of trial {artifact.trial} marked deleted: {artifact.path} is gone")
        if changes:
            store.add_event("repaired", {"changes": changes})
        return changes


def _fail(database: Database, trials: Sequence[tuple[int, int]], guard: Guard) -> list[str]:
    from automl.storage.optuna_storage import fail_trials

    if trials:
        fail_trials(database.address, [trial_id for trial_id, _ in trials], StopReason.LOST.value, guard)
    return [f"trial {number} told FAIL: its driver died before it had parameters" for _, number in trials]
