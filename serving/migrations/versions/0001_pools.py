"""Pools, demonstrations, encodings and their vectors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _of(table: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{table}.id", ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "pool",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("active", sa.BigInteger),
        sa.Column("previous", sa.BigInteger),
        sa.Column("created", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "demonstration",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("pool_id", sa.BigInteger, _of("pool"), nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("query_hash", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.UniqueConstraint("pool_id", "key"),
        sqlite_autoincrement=True,
    )
    op.create_index("demonstration_in_order", "demonstration", ["pool_id", "id"])
    op.create_table(
        "tombstone",
        sa.Column("demonstration_id", sa.BigInteger, primary_key=True),
        sa.Column("pool_id", sa.BigInteger, _of("pool"), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_index("tombstone_in_order", "tombstone", ["pool_id", "seq"])
    op.create_table(
        "encoding",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("pool_id", sa.BigInteger, _of("pool"), nullable=False),
        sa.Column("retriever", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("weights", sa.JSON),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.UniqueConstraint("pool_id", "fingerprint"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "vector",
        sa.Column("encoding_id", sa.BigInteger, _of("encoding"), primary_key=True),
        sa.Column("demonstration_id", sa.BigInteger, _of("demonstration"), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_index("vector_in_order", "vector", ["encoding_id", "seq"])
    op.create_index("vector_of_demonstration", "vector", ["demonstration_id"])


def downgrade() -> None:
    for table in ("vector", "encoding", "tombstone", "demonstration", "pool"):
        op.drop_table(table)
