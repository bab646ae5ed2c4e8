"""Jobs count the processes that ended at them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_deaths"
down_revision = "0001_initial"


def upgrade() -> None:
    op.add_column("job", sa.Column("deaths", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("job", "deaths")
