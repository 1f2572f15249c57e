"""What a search concludes: importance of modules, verifications and their scores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"


def upgrade() -> None:
    op.create_table(
        "automl_importances",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("module", sa.String(255), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("in_features", sa.Integer, nullable=False),
        sa.Column("out_features", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("fraction_done", sa.Float(53), nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("sensitivity", sa.Float(53), nullable=False),
        sa.Column("uncertainty", sa.Float(53), nullable=False),
        sa.Column("effective_rank", sa.Float(53), nullable=False),
        sa.Column("relative_update", sa.Float(53), nullable=False),
        sa.Column("held_out", sa.Float(53)),
        sa.Column("held_out_error", sa.Float(53)),
        sa.Column("components", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("study_name", "trial", "module", name="pk_automl_importances"),
        sa.CheckConstraint("rank >= 1 AND samples >= 0 AND step >= 0", name=op.f("ck_automl_importances_counts")),
        sa.CheckConstraint(
            "fraction_done >= 0 AND fraction_done <= 1", name=op.f("ck_automl_importances_fraction_done")
        ),
        sa.CheckConstraint(
            f"sensitivity {_FINITE} AND uncertainty {_FINITE}", name=op.f("ck_automl_importances_sensitivity")
        ),
    )
    op.create_table(
        "automl_verifications",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("ended_at", sa.DateTime),
        sa.PrimaryKeyConstraint("study_name", "number", name="pk_automl_verifications"),
        sa.CheckConstraint("number >= 1", name=op.f("ck_automl_verifications_number")),
        sa.CheckConstraint("state IN ('RUNNING', 'DONE')", name=op.f("ck_automl_verifications_state")),
        sa.CheckConstraint("(state = 'DONE') = (ended_at IS NOT NULL)", name=op.f("ck_automl_verifications_ended")),
    )
    op.create_table(
        "automl_verification_scores",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("verification", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("learning_rate", sa.Float(53), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint(
            "study_name",
            "verification",
            "arm",
            "seed",
            "learning_rate",
            "split",
            "metric",
            name="pk_automl_verification_scores",
        ),
        sa.CheckConstraint("split IN ('validation', 'test')", name=op.f("ck_automl_verification_scores_split")),
        sa.CheckConstraint(f"value {_FINITE}", name=op.f("ck_automl_verification_scores_value")),
        sa.ForeignKeyConstraint(
            ["study_name", "verification"],
            ["automl_verifications.study_name", "automl_verifications.number"],
            name="fk_automl_verification_scores_automl_verifications",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    for name in ("verification_scores", "verifications", "importances"):
        op.drop_table(f"automl_{name}")
