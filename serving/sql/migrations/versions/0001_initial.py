"""Pools, demonstrations and their embeddings; jobs, keys, kept answers and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from serving.sql.tables import VECTOR

revision = "0001_initial"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _of(table: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{table}.id", ondelete="CASCADE")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "pool",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
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
        "embedding",
        sa.Column("encoding_id", sa.BigInteger, _of("encoding"), primary_key=True),
        sa.Column("demonstration_id", sa.BigInteger, _of("demonstration"), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("data", VECTOR, nullable=False),
    )
    op.create_index("embedding_in_order", "embedding", ["encoding_id", "seq"])
    op.create_index("embedding_of_demonstration", "embedding", ["demonstration_id"])
    op.create_table(
        "job",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("pool_id", sa.BigInteger, _of("pool"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("line", sa.BigInteger, nullable=False),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("beat", sa.Float, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("finished", sa.Float),
        sa.UniqueConstraint("pool_id", "key"),
    )
    op.create_index("job_by_state", "job", ["state", "created"])
    op.create_table(
        "job_part",
        sa.Column("job_id", sa.Text, _of("job"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "api_key",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("pools", sa.JSON(none_as_null=True)),
        sa.Column("expires", sa.Float),
        sa.Column("created", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.LargeBinary),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_index("idempotency_by_age", "idempotency", ["created"])
    op.create_table(
        "audit",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("pool", sa.Text),
        sa.Column("details", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_by_age", "audit", ["at"])


def downgrade() -> None:
    tables = (
        "audit",
        "idempotency",
        "api_key",
        "job_part",
        "job",
        "embedding",
        "encoding",
        "tombstone",
        "demonstration",
        "pool",
    )
    for table in tables:
        op.drop_table(table)
