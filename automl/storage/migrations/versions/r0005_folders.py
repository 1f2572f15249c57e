"""Whose a study's folder is: an identity of the study, and the folder in which its files lie."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Studies that are there get both when they are next driven."""
    op.add_column("automl_sweeps", sa.Column("identity", sa.String(32)))
    op.add_column("automl_sweeps", sa.Column("folder", sa.Text))


def downgrade() -> None:
    op.drop_column("automl_sweeps", "folder")
    op.drop_column("automl_sweeps", "identity")
