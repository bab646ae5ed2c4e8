"""What came of prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_feedback"
down_revision = "0003_front"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("pool_id", sa.BigInteger, sa.ForeignKey("pool.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("choices", sa.JSON, nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("score", sa.Float),
        sa.Column("corrected", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("feedback_in_order", "feedback", ["pool_id", "state", "id"])


def downgrade() -> None:
    op.drop_table("feedback")
