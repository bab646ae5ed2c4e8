"""The service's tables. Ids are never used again, so a demonstration's id is its id in every index, for good."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.types import TypeDecorator, UserDefinedType

from udr.types import FloatArray

__all__ = [
    "VECTOR",
    "api_key",
    "audit",
    "demonstration",
    "embedding",
    "encoding",
    "feedback",
    "idempotency",
    "job",
    "job_part",
    "metadata",
    "pool",
    "saved_index",
    "tombstone",
]


class _Bytes(TypeDecorator[FloatArray]):
    """float32 (d,) as little-endian bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: FloatArray | None, dialect: Dialect) -> bytes | None:
        return None if value is None else np.ascontiguousarray(value, dtype="<f4").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> FloatArray | None:
        return None if value is None else np.frombuffer(value, dtype="<f4")


class _PgVector(UserDefinedType[FloatArray]):
    """float32 (d,) as pgvector keeps them, any d; written as text, read in the binary form."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "VECTOR"

    def column_expression(self, column: Any) -> Any:
        return func.vector_send(column, type_=self)

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: None if value is None else f"[{','.join(map(repr, value.tolist()))}]"

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # two numbers of 16 bits stand before the values
        return lambda value: None if value is None else np.frombuffer(value, dtype=">f4", offset=4).astype(np.float32)


VECTOR = _Bytes().with_variant(_PgVector(), "postgresql")
metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only under the name INTEGER

pool = Table(
    "pool",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("spec", JSON, nullable=False),  # a udr.tasks.TaskSpec
    Column("seq", BigInteger, nullable=False),  # grows with every write; read and raised under the row's lock
    Column("size", BigInteger, nullable=False),  # its demonstrations
    Column("active", BigInteger),  # the encoding that answers
    Column("previous", BigInteger),  # the one before, for a roll-back
    Column("created", Float, nullable=False),  # seconds since 1970
    Column("front", JSON(none_as_null=True)),  # how requests to the LLM server get its demonstrations; null: as usual
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

# not named `vector`: in PostgreSQL a table is a type too, and pgvector has one of that name
embedding = Table(
    "embedding",
    metadata,
    Column("encoding_id", BigInteger, ForeignKey("encoding.id", ondelete="CASCADE"), primary_key=True),
    Column("demonstration_id", BigInteger, ForeignKey("demonstration.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("data", VECTOR, nullable=False),
    Index("embedding_in_order", "encoding_id", "seq"),
    Index("embedding_of_demonstration", "demonstration_id"),
)

# indexes that were saved beside the database: one that is put back to an earlier day lacks those of later ones
saved_index = Table(
    "saved_index",
    metadata,
    Column("token", Text, primary_key=True),  # stands in the saved index too
    Column("encoding_id", BigInteger, ForeignKey("encoding.id", ondelete="CASCADE"), nullable=False),
)

# work that outlives a request, and its process: loads and changes of the retriever
job = Table(
    "job",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pool_id", BigInteger, ForeignKey("pool.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),  # load, switch
    Column("state", Text, nullable=False),  # receiving, queued, running, done, failed, cancelled
    Column("spec", JSON, nullable=False),  # what was asked for
    Column("key", Text),  # the request's Idempotency-Key, after its caller's name
    Column("fingerprint", Text),  # of what was sent under that key
    Column("position", BigInteger, nullable=False),  # where in the payload the next piece begins: bytes or rows
    Column("line", BigInteger, nullable=False),  # lines or rows that are behind it
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("counts", JSON, nullable=False),  # see serving.sql.jobs.COUNTS
    Column("errors", JSON, nullable=False),  # the first of them, each with its line; null: what is no line's
    Column("error", Text),  # why the whole failed
    Column("owner", Text),  # the thread of a process at work
    Column("beat", Float, nullable=False),  # when it was last heard of
    Column("created", Float, nullable=False),
    Column("finished", Float),
    Column("deaths", Integer, nullable=False),  # processes in a row that ended at it
    Column("caller", Text),  # who asked for it
    UniqueConstraint("pool_id", "key"),
    Index("job_by_state", "state", "created"),
)

job_part = Table(
    "job_part",
    metadata,
    Column("job_id", Text, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False, unique=True),  # SHA-256 of a secret of 256 random bits
    Column("role", Text, nullable=False),  # read, write, admin
    Column("pools", JSON(none_as_null=True)),  # the only ones it may touch; null: all
    Column("expires", Float),
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,
)

# answers kept for requests that are sent again
idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),  # after its caller's name
    Column("fingerprint", Text, nullable=False),  # of the request
    Column("status", Integer),  # null while it is worked on
    Column("body", LargeBinary),
    Column("created", Float, nullable=False),
    Index("idempotency_by_age", "created"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", Float, nullable=False),
    Column("caller", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("pool", Text),
    Column("details", JSON, nullable=False),
    Index("audit_by_age", "at"),
    sqlite_autoincrement=True,
)

# what came of prompts
feedback = Table(
    "feedback",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("pool_id", BigInteger, ForeignKey("pool.id", ondelete="CASCADE"), nullable=False),
    Column("at", Float, nullable=False),
    Column("caller", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("choices", JSON, nullable=False),
    Column("shown", JSON, nullable=False),  # ids of the demonstrations in the prompt
    Column("output", Text),  # what the LM answered
    Column("score", Float),  # from 0, wrong, to 1, right
    Column("corrected", Text),  # what it should have answered
    Column("state", Text, nullable=False),  # recorded, or of a correction: waiting, accepted, rejected
    Index("feedback_in_order", "pool_id", "state", "id"),
    sqlite_autoincrement=True,
)
