"""Sweeps with their lease, attempts, measurements, artifacts and events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"
_STATES = "'RUNNING', 'SUCCEEDED', 'PARKED', 'FAILED', 'LOST', 'INTERRUPTED'"
_REASONS = "'finished', 'pruned', 'diverged', 'oom', 'budget', 'infeasible', 'error', 'host_crash', 'lost'"


def upgrade() -> None:
    op.create_table(
        "automl_sweeps",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("space_text", sa.Text, nullable=False),
        sa.Column("space_sha256", sa.String(64), nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("owner_process", sa.String(255)),
        sa.Column("lease_until", sa.DateTime),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("study_name", name="pk_automl_sweeps"),
        sa.CheckConstraint("runs >= 0", name=op.f("ck_automl_sweeps_runs")),
        sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_automl_sweeps_lease")),
    )
    op.create_table(
        "automl_attempts",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("worker", sa.Integer, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("ended_at", sa.DateTime),
        sa.PrimaryKeyConstraint("study_name", "trial", "number", name="pk_automl_attempts"),
        sa.CheckConstraint("number >= 1", name=op.f("ck_automl_attempts_number")),
        sa.CheckConstraint(f"state IN ({_STATES})", name=op.f("ck_automl_attempts_state")),
        sa.CheckConstraint(
            f"state NOT IN ('SUCCEEDED', 'FAILED') OR reason IN ({_REASONS})", name=op.f("ck_automl_attempts_reason")
        ),
        sa.CheckConstraint("(state = 'RUNNING') = (ended_at IS NULL)", name=op.f("ck_automl_attempts_ended")),
    )
    op.create_table(
        "automl_measurements",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("adapter", sa.Text),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("study_name", "trial", "step", name="pk_automl_measurements"),
        sa.CheckConstraint("step >= 0", name=op.f("ck_automl_measurements_step")),
        sa.CheckConstraint(f"seconds >= 0 AND seconds {_FINITE}", name=op.f("ck_automl_measurements_seconds")),
        sa.CheckConstraint("tokens >= 0", name=op.f("ck_automl_measurements_tokens")),
    )
    op.create_table(
        "automl_metric_values",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("study_name", "trial", "step", "metric", name="pk_automl_metric_values"),
        sa.CheckConstraint(f"value {_FINITE}", name=op.f("ck_automl_metric_values_value")),
        sa.ForeignKeyConstraint(
            ["study_name", "trial", "step"],
            ["automl_measurements.study_name", "automl_measurements.trial", "automl_measurements.step"],
            name="fk_automl_metric_values_automl_measurements",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "automl_artifacts",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("metric", sa.Float(53)),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("deleted_at", sa.DateTime),
        sa.PrimaryKeyConstraint("study_name", "trial", "kind", name="pk_automl_artifacts"),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_automl_artifacts_bytes")),
        sa.CheckConstraint(f"metric IS NULL OR metric {_FINITE}", name=op.f("ck_automl_artifacts_metric")),
    )
    op.create_table(
        "automl_events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_automl_events"),
    )
    op.create_index("ix_automl_events_study_name", "automl_events", ["study_name"])


def downgrade() -> None:
    for name in ("events", "artifacts", "metric_values", "measurements", "attempts", "sweeps"):
        op.drop_table(f"automl_{name}")
