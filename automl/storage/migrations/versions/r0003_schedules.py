"""Unattended work: schedules, their nights, submitted sweeps, and the schedulers that work them off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"
_FIRING_STATES = (
    "'QUEUED', 'RUNNING', 'SUCCEEDED', 'NO_IMPROVEMENT', 'REGRESSION', 'FAILED', 'TIMED_OUT', 'MISSED', 'SKIPPED'"
)


def upgrade() -> None:
    op.create_table(
        "automl_schedules",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("cron", sa.String(255), nullable=False),
        sa.Column("timezone", sa.String(64), nullable=False),
        sa.Column("space_text", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("overlap", sa.String(16), nullable=False),
        sa.Column("catch_up_seconds", sa.Float(53)),
        sa.Column("deadline_seconds", sa.Float(53)),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("fired_until", sa.DateTime, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_automl_schedules"),
        sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED')", name=op.f("ck_automl_schedules_state")),
        sa.CheckConstraint("overlap IN ('skip', 'queue')", name=op.f("ck_automl_schedules_overlap")),
        sa.CheckConstraint(
            "catch_up_seconds IS NULL OR catch_up_seconds >= 0", name=op.f("ck_automl_schedules_catch_up_seconds")
        ),
        sa.CheckConstraint(
            "deadline_seconds IS NULL OR deadline_seconds > 0", name=op.f("ck_automl_schedules_deadline_seconds")
        ),
    )
    op.create_table(
        "automl_firings",
        sa.Column("schedule", sa.String(100), nullable=False),
        sa.Column("slot", sa.DateTime, nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("study_name", sa.String(255)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("owner_process", sa.String(255)),
        sa.Column("lease_until", sa.DateTime),
        sa.Column("not_before", sa.DateTime),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("started_at", sa.DateTime),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("exit_code", sa.Integer),
        sa.Column("value", sa.Float(53)),
        sa.Column("comparison", sa.JSON),
        sa.Column("message", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("schedule", "slot", name="pk_automl_firings"),
        sa.CheckConstraint("cause IN ('cron', 'hand')", name=op.f("ck_automl_firings_cause")),
        sa.CheckConstraint(f"state IN ({_FIRING_STATES})", name=op.f("ck_automl_firings_state")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_automl_firings_attempts")),
        sa.CheckConstraint("(state = 'RUNNING') = (owner IS NOT NULL)", name=op.f("ck_automl_firings_owner")),
        sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_automl_firings_lease")),
        sa.CheckConstraint(
            "(state IN ('QUEUED', 'RUNNING')) = (ended_at IS NULL)", name=op.f("ck_automl_firings_ended")
        ),
        sa.CheckConstraint(f"value IS NULL OR value {_FINITE}", name=op.f("ck_automl_firings_value")),
    )
    op.create_index(
        "ix_automl_firings_running",
        "automl_firings",
        ["schedule"],
        unique=True,
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_table(
        "automl_submissions",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("space_text", sa.Text, nullable=False),
        sa.Column("submitted_at", sa.DateTime, nullable=False),
        sa.Column("submitted_by", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("owner_process", sa.String(255)),
        sa.Column("lease_until", sa.DateTime),
        sa.Column("not_before", sa.DateTime),
        sa.Column("started_at", sa.DateTime),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("exit_code", sa.Integer),
        sa.Column("message", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_automl_submissions"),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'DONE', 'FAILED', 'CANCELLED')", name=op.f("ck_automl_submissions_state")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_automl_submissions_attempts")),
        sa.CheckConstraint("(state = 'RUNNING') = (owner IS NOT NULL)", name=op.f("ck_automl_submissions_owner")),
        sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_automl_submissions_lease")),
        sa.CheckConstraint(
            "(state IN ('QUEUED', 'RUNNING')) = (ended_at IS NULL)", name=op.f("ck_automl_submissions_ended")
        ),
    )
    op.create_index("ix_automl_submissions_state", "automl_submissions", ["state"])
    op.create_table(
        "automl_schedulers",
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("owner_process", sa.String(255), nullable=False),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("seen_at", sa.DateTime, nullable=False),
        sa.Column("running", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_automl_schedulers"),
    )


def downgrade() -> None:
    for name in ("schedulers", "submissions", "firings", "schedules"):
        op.drop_table(f"automl_{name}")
