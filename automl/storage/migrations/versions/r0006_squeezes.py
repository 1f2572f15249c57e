"""What has been found of the smaller sizes of a trial's adapter: the curve, and the directions of its modules."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"


def upgrade() -> None:
    op.create_table(
        "automl_squeezes",
        *_key(),
        sa.Column("adapter_sha256", sa.String(64), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("margin", sa.Float(53), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("seen", sa.Integer, nullable=False),
        sa.Column("knee", sa.BigInteger, nullable=False),
        sa.Column("recovery_steps", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("study_name", "trial", name="pk_automl_squeezes"),
        sa.CheckConstraint(
            "rows >= 1 AND seen >= 0 AND knee >= 1 AND recovery_steps >= 0", name=op.f("ck_automl_squeezes_counts")
        ),
        sa.CheckConstraint(f"margin >= 0 AND margin {_FINITE}", name=op.f("ck_automl_squeezes_margin")),
    )
    op.create_table(
        "automl_squeeze_cuts",
        *_key(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("even_rank", sa.Float(53), nullable=False),
        sa.Column("kept", sa.Float(53), nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("recovered", sa.JSON),
        sa.PrimaryKeyConstraint("study_name", "trial", "kind", "parameters", name="pk_automl_squeeze_cuts"),
        sa.CheckConstraint("kind IN ('whole', 'global', 'even', 'asked')", name=op.f("ck_automl_squeeze_cuts_kind")),
        sa.CheckConstraint("parameters >= 1 AND even_rank > 0 AND kept >= 0", name=op.f("ck_automl_squeeze_cuts_size")),
        sa.CheckConstraint(f"value {_FINITE}", name=op.f("ck_automl_squeeze_cuts_value")),
        _reference("automl_squeeze_cuts"),
    )
    op.create_table(
        "automl_squeezed_modules",
        *_key(),
        sa.Column("module", sa.String(255), nullable=False),
        sa.Column("in_features", sa.Integer, nullable=False),
        sa.Column("out_features", sa.Integer, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("knee_rank", sa.Integer, nullable=False),
        sa.Column("strengths", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("study_name", "trial", "module", name="pk_automl_squeezed_modules"),
        sa.CheckConstraint(
            "rank >= 0 AND knee_rank >= 0 AND knee_rank <= rank", name=op.f("ck_automl_squeezed_modules_rank")
        ),
        _reference("automl_squeezed_modules"),
    )


def downgrade() -> None:
    for name in ("automl_squeezed_modules", "automl_squeeze_cuts", "automl_squeezes"):
        op.drop_table(name)


def _key() -> tuple[sa.Column[str], sa.Column[int]]:
    return sa.Column("study_name", sa.String(255), nullable=False), sa.Column("trial", sa.Integer, nullable=False)


def _reference(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["study_name", "trial"],
        ["automl_squeezes.study_name", "automl_squeezes.trial"],
        name=f"fk_{table}_automl_squeezes",
        ondelete="CASCADE",
    )
