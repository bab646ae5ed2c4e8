"""Pools say how requests to the LLM server get their demonstrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_front"
down_revision = "0002_deaths"


def upgrade() -> None:
    op.add_column("pool", sa.Column("front", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    op.drop_column("pool", "front")
