"""Runs of a search and how they ended; one open submission for each study; indexes for lists of many studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OPEN = sa.text("state IN ('QUEUED', 'RUNNING')")


def upgrade() -> None:
    op.create_table(
        "automl_runs",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("ended", sa.String(16)),
        sa.PrimaryKeyConstraint("study_name", "run", name="pk_automl_runs"),
        sa.CheckConstraint("run >= 1", name=op.f("ck_automl_runs_run")),
        sa.CheckConstraint("trials >= 0 AND steps >= 0", name=op.f("ck_automl_runs_counts")),
        sa.CheckConstraint(
            "ended IS NULL OR ended IN ('finished', 'time', 'stopped', 'interrupted', 'failed')",
            name=op.f("ck_automl_runs_ended"),
        ),
        sa.CheckConstraint("(ended IS NULL) = (ended_at IS NULL)", name=op.f("ck_automl_runs_ended_at")),
    )
    op.create_index("ix_automl_sweeps_updated_at", "automl_sweeps", ["updated_at", "study_name"])
    op.create_index("ix_automl_sweeps_lease_until", "automl_sweeps", ["lease_until"])
    connection = op.get_bind()
    _record_earlier_runs(connection)
    _keep_one_open_submission(connection)
    op.create_index(
        "ix_automl_submissions_open",
        "automl_submissions",
        ["study_name"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )


def downgrade() -> None:
    op.drop_index("ix_automl_submissions_open", "automl_submissions")
    op.drop_index("ix_automl_sweeps_lease_until", "automl_sweeps")
    op.drop_index("ix_automl_sweeps_updated_at", "automl_sweeps")
    op.drop_table("automl_runs")


def _record_earlier_runs(connection: sa.Connection) -> None:
    """A row for the last run of every study, as far as its space file and its events tell."""
    query = "SELECT study_name, space_text, runs, created_at, updated_at FROM automl_sweeps WHERE runs > 0"
    rows = [
        {
            "study": row.study_name,
            "run": row.runs,
            **_asked_for(row.space_text),
            "started_at": row.created_at,
            "ended_at": row.updated_at if finished else None,
            "ended": "finished" if finished else None,
        }
        for row in connection.execute(sa.text(query)).all()
        for finished in [_has_finished(connection, row.study_name)]
    ]
    statement = (
        "INSERT INTO automl_runs (study_name, run, trials, steps, metric, started_at, ended_at, ended)"
        " VALUES (:study, :run, :trials, :steps, :metric, :started_at, :ended_at, :ended)"
    )
    if rows:
        connection.execute(sa.text(statement), rows)


def _asked_for(space_text: str) -> dict[str, Any]:
    from automl.errors import ConfigError
    from automl.space.load import parse_space

    try:
        spec = parse_space(space_text, "the recorded space", Path("/"))
    except ConfigError:
        return {"trials": 0, "steps": 0, "metric": ""}
    return {"trials": spec.search.trials, "steps": spec.search.steps, "metric": spec.task.metric}


def _has_finished(connection: sa.Connection, study: str) -> bool:
    """Whether its last run came to its end. A verification has taken the lease too, and left the same event."""
    query = "SELECT kind, at FROM automl_events WHERE study_name = :study AND kind IN ('run_started', 'finished')"
    events = connection.execute(sa.text(f"{query} ORDER BY id"), {"study": study}).all()
    ends = [number for number, event in enumerate(events) if event.kind == "finished"]
    if not ends:
        return False
    later = "SELECT COUNT(*) FROM automl_verifications WHERE study_name = :study AND started_at >= :at"
    verified = connection.execute(sa.text(later), {"study": study, "at": events[ends[-1]].at}).scalar_one()
    return len(events) - 1 - ends[-1] <= int(verified)


def _keep_one_open_submission(connection: sa.Connection) -> None:
    """Keep the open submission of a study that runs, else the oldest; the others are cancelled."""
    query = "SELECT id, study_name FROM automl_submissions WHERE state IN ('QUEUED', 'RUNNING')"
    order = "CASE state WHEN 'RUNNING' THEN 0 ELSE 1 END, submitted_at, id"
    seen: set[str] = set()
    for row in connection.execute(sa.text(f"{query} ORDER BY {order}")).all():
        if row.study_name in seen:
            connection.execute(
                sa.text(
                    "UPDATE automl_submissions SET state = 'CANCELLED', ended_at = submitted_at, owner = NULL,"
                    " owner_process = NULL, lease_until = NULL, message = 'another one of this study was queued'"
                    " WHERE id = :id"
                ),
                {"id": row.id},
            )
        seen.add(row.study_name)
