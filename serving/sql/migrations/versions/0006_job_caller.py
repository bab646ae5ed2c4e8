"""Jobs know who asked for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_job_caller"
down_revision = "0005_saved_index"


def upgrade() -> None:
    op.add_column("job", sa.Column("caller", sa.Text))


def downgrade() -> None:
    op.drop_column("job", "caller")
