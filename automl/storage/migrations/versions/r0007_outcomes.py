"""What each training of a verification has made of each row, so that rows can be taken for the sample they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "automl_verification_outcomes",
        sa.Column("study_name", sa.String(255), nullable=False),
        sa.Column("verification", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("learning_rate", sa.Float(53), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("outcomes", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint(
            "study_name",
            "verification",
            "arm",
            "seed",
            "learning_rate",
            "split",
            name="pk_automl_verification_outcomes",
        ),
        sa.CheckConstraint("split IN ('validation', 'test')", name=op.f("ck_automl_verification_outcomes_split")),
        sa.ForeignKeyConstraint(
            ["study_name", "verification"],
            ["automl_verifications.study_name", "automl_verifications.number"],
            name="fk_automl_verification_outcomes_automl_verifications",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("automl_verification_outcomes")
