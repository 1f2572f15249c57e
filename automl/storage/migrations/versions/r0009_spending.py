"""What runs spend: time of devices and its price, and the rows that trials are trained on; runs that a budget ends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BEFORE = "'finished', 'time', 'stopped', 'interrupted', 'failed'"
_ENDS = "'finished', 'time', 'budget', 'stopped', 'interrupted', 'failed'"
_FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"
_CHECKS = {
    "device_seconds": f"device_seconds IS NULL OR (device_seconds >= 0 AND device_seconds {_FINITE})",
    "price": f"price IS NULL OR (price > 0 AND price {_FINITE})",
    "currency": "(price IS NULL) = (currency IS NULL)",
}
_KEPT = "study_name, run, trials, steps, metric, started_at, ended_at, ended"


def upgrade() -> None:
    """Nothing is known of what was spent before."""
    op.add_column("automl_measurements", sa.Column("examples", sa.BigInteger))
    if op.get_bind().dialect.name == "sqlite":
        _make_anew(_ENDS, _added(), _CHECKS)
        return
    for column in _added():
        op.add_column("automl_runs", column)
    _replace_ends(_ENDS)
    for name, check in _CHECKS.items():
        op.create_check_constraint(op.f(f"ck_automl_runs_{name}"), "automl_runs", check)


def downgrade() -> None:
    """A run that a budget ended is told as stopped."""
    op.execute("UPDATE automl_runs SET ended = 'stopped' WHERE ended = 'budget'")
    if op.get_bind().dialect.name == "sqlite":
        _make_anew(_BEFORE, [], {})
    else:
        for name in _CHECKS:
            op.drop_constraint(op.f(f"ck_automl_runs_{name}"), "automl_runs")
        for column in _added():
            op.drop_column("automl_runs", column.name)
        _replace_ends(_BEFORE)
    op.drop_column("automl_measurements", "examples")


def _added() -> list[sa.Column[float] | sa.Column[str]]:
    return [
        sa.Column("device_seconds", sa.Float(53)),
        sa.Column("price", sa.Float(53)),
        sa.Column("currency", sa.String(8)),
    ]


def _replace_ends(ends: str) -> None:
    op.drop_constraint(op.f("ck_automl_runs_ended"), "automl_runs")
    op.create_check_constraint(op.f("ck_automl_runs_ended"), "automl_runs", f"ended IS NULL OR ended IN ({ends})")


def _make_anew(ends: str, added: list[sa.Column[float] | sa.Column[str]], checks: dict[str, str]) -> None:
    """SQLite cannot change a check of a table that is there."""
    op.rename_table("automl_runs", "automl_runs_before")
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
        *added,
        sa.PrimaryKeyConstraint("study_name", "run", name="pk_automl_runs"),
        sa.CheckConstraint("run >= 1", name=op.f("ck_automl_runs_run")),
        sa.CheckConstraint("trials >= 0 AND steps >= 0", name=op.f("ck_automl_runs_counts")),
        sa.CheckConstraint(f"ended IS NULL OR ended IN ({ends})", name=op.f("ck_automl_runs_ended")),
        sa.CheckConstraint("(ended IS NULL) = (ended_at IS NULL)", name=op.f("ck_automl_runs_ended_at")),
        *(sa.CheckConstraint(check, name=op.f(f"ck_automl_runs_{name}")) for name, check in checks.items()),
    )
    op.execute(f"INSERT INTO automl_runs ({_KEPT}) SELECT {_KEPT} FROM automl_runs_before")  # noqa: S608  # constants
    op.drop_table("automl_runs_before")
