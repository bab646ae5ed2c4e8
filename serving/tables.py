"""The service's tables. Ids are never used again, so a demonstration's id is its id in every index, for good."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = ["demonstration", "encoding", "metadata", "pool", "tombstone", "vector"]

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only under the name INTEGER

pool = Table(
    "pool",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("spec", JSON, nullable=False),  # a udr.tasks.TaskSpec
    Column("seq", BigInteger, nullable=False),  # grows with every write; read and raised under the row's lock
    Column("active", BigInteger),  # the encoding that answers
    Column("previous", BigInteger),  # the one before, for a roll-back
    Column("created", Float, nullable=False),  # seconds since 1970
    sqlite_autoincrement=True,
)

demonstration = Table(
    "demonstration",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("pool_id", BigInteger, ForeignKey("pool.id", ondelete="CASCADE"), nullable=False),
    Column("key", Text, nullable=False),  # the id that the client gave, or the content hash
    Column("seq", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),  # of all that follows
    Column("query_hash", Text, nullable=False),  # of the input alone
    Column("input", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("details", JSON, nullable=False),  # choices, references, media
    Column("metadata", JSON, nullable=False),
    UniqueConstraint("pool_id", "key"),
    Index("demonstration_in_order", "pool_id", "id"),
    sqlite_autoincrement=True,
)

# what indexes must forget that hold what is no more
tombstone = Table(
    "tombstone",
    metadata,
    Column("demonstration_id", BigInteger, primary_key=True),
    Column("pool_id", BigInteger, ForeignKey("pool.id", ondelete="CASCADE"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Index("tombstone_in_order", "pool_id", "seq"),
)

encoding = Table(
    "encoding",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("pool_id", BigInteger, ForeignKey("pool.id", ondelete="CASCADE"), nullable=False),
    Column("retriever", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),  # of what made the vectors
    Column("dim", Integer, nullable=False),
    Column("weights", JSON),  # of the trained and the untrained encoder, where both speak
    Column("state", Text, nullable=False),  # building, ready
    Column("created", Float, nullable=False),
    UniqueConstraint("pool_id", "fingerprint"),
    sqlite_autoincrement=True,
)

vector = Table(
    "vector",
    metadata,
    Column("encoding_id", BigInteger, ForeignKey("encoding.id", ondelete="CASCADE"), primary_key=True),
    Column("demonstration_id", BigInteger, ForeignKey("demonstration.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),  # float32, little-endian
    Index("vector_in_order", "encoding_id", "seq"),
    Index("vector_of_demonstration", "demonstration_id"),
)
