"""The database knows the indexes that were saved beside it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_saved_index"
down_revision = "0004_feedback"


def upgrade() -> None:
    op.create_table(
        "saved_index",
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("encoding_id", sa.BigInteger, sa.ForeignKey("encoding.id", ondelete="CASCADE"), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("saved_index")
