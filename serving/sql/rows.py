"""Rows as the service knows them, and the statements that several transactions are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import sqlalchemy as sa

from serving.sql.tables import demonstration, embedding, pool, tombstone
from udr.errors import NotFoundError
from udr.types import Demonstration, FloatArray, Media

__all__ = [
    "Changes",
    "EncodingRow",
    "PoolRow",
    "Stored",
    "Written",
    "bury",
    "hash_of",
    "insert",
    "insert_vectors",
    "known",
    "lock",
    "portions",
    "stored",
    "with_details",
]

T = TypeVar("T")
_FEW = 500  # values in one IN (…): every database takes so many


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool as its row states it."""

    id: int
    name: str
    spec: Mapping[str, Any]
    seq: int
    size: int
    active: int | None
    previous: int | None
    created: float
    front: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class EncodingRow:
    """One way in which a pool is or was turned into vectors."""

    id: int
    pool_id: int
    retriever: str
    fingerprint: str
    dim: int
    weights: list[float] | None
    state: str
    created: float


class Stored(NamedTuple):
    """A demonstration and the number under which indexes know it."""

    row: int
    demonstration: Demonstration
    query_hash: str


class Written(NamedTuple):
    """What became of the demonstrations of one write."""

    created: int
    replaced: int
    unchanged: int
    seq: int


class Changes(NamedTuple):
    """What an index must take in to go from one `seq` to the next."""

    seq: int
    rows: list[int]
    vectors: FloatArray
    metadata: list[dict[str, str]]
    gone: list[int]


def lock(c: sa.Connection, pool_id: int) -> Any:
    """Take the pool's lock and its next number; both are kept until the transaction ends, so numbers come in order."""
    raised = sa.update(pool).where(pool.c.id == pool_id).values(seq=pool.c.seq + 1)
    row = c.execute(
        raised.returning(pool.c.name, pool.c.seq, pool.c.size, pool.c.active, pool.c.previous)
    ).one_or_none()
    if row is None:
        raise NotFoundError("the pool was deleted")
    return row


def known(c: sa.Connection, pool_id: int, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Row and hash of each key that the pool has."""
    found: dict[str, tuple[int, str]] = {}
    columns = sa.select(demonstration.c.key, demonstration.c.id, demonstration.c.hash)
    for some in portions(keys):
        query = columns.where(demonstration.c.pool_id == pool_id, demonstration.c.key.in_(some))
        found.update({key: (row, content) for key, row, content in c.execute(query)})
    return found


def bury(c: sa.Connection, pool_id: int, rows: Sequence[int], seq: int) -> None:
    """Forget rows, and leave a tombstone of each for the indexes."""
    if not rows:
        return
    c.execute(sa.insert(tombstone), [{"demonstration_id": r, "pool_id": pool_id, "seq": seq} for r in rows])
    for some in portions(rows):
        c.execute(sa.delete(demonstration).where(demonstration.c.id.in_(some)))


def insert(c: sa.Connection, pool_id: int, demonstrations: Sequence[Demonstration], seq: int) -> list[int]:
    """Give each a row, in order."""
    if not demonstrations:
        return []
    values = [
        {
            "pool_id": pool_id,
            "key": d.id,
            "seq": seq,
            "hash": hash_of(d),
            "query_hash": d.query.content_hash,
            "input": d.input,
            "output": d.output,
            "details": _details(d),
            "metadata": dict(d.metadata),
        }
        for d in demonstrations
    ]
    returning = sa.insert(demonstration).returning(demonstration.c.id, sort_by_parameter_order=True)
    return list(c.execute(returning, values).scalars())


def insert_vectors(c: sa.Connection, encoding_id: int, rows: Sequence[int], vectors: FloatArray, seq: int) -> None:
    """Store vectors (m, d) of rows (m,) under an encoding."""
    if not len(rows):
        return
    raw = np.ascontiguousarray(vectors, dtype=np.float32)
    values = [
        {"encoding_id": encoding_id, "demonstration_id": r, "seq": seq, "data": v}
        for r, v in zip(rows, raw, strict=True)
    ]
    c.execute(sa.insert(embedding), values)


def _details(d: Demonstration) -> dict[str, Any]:
    """What a demonstration has beside input and output, without what is empty; media by address only."""
    found: dict[str, Any] = {"choices": list(d.choices), "references": list(d.references)}
    found["media"] = [{"kind": m.kind, "uri": m.uri} for m in d.media]
    return {key: value for key, value in found.items() if value}


def hash_of(d: Demonstration) -> str:
    """Hash of all that a demonstration holds beside its id."""
    return Demonstration("", d.content_hash, repr((d.references, sorted(d.metadata.items())))).content_hash


def with_details(details: sa.ColumnElement[Any] | None) -> list[sa.ColumnElement[Any]]:
    """The columns of `demonstration` with other choices, references and media, which may be large; None: without."""
    other = sa.null() if details is None else details
    return [other.label(c.name) if c is demonstration.c.details else c for c in demonstration.c]


def stored(row: Sequence[Any]) -> Stored:
    """A row of `demonstration` as one."""
    number, _, key, _, _, query_hash, question, output, details, metadata = row
    details = details or {}
    own = Demonstration(
        key,
        question,
        output,
        tuple(details.get("choices", ())),
        tuple(details.get("references", ())),
        tuple(Media(**m) for m in details.get("media", ())),
        metadata,
    )
    return Stored(number, own, query_hash)


def portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Parts that fit one IN (…)."""
    return (values[i : i + _FEW] for i in range(0, len(values), _FEW))
