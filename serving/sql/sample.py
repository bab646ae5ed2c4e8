"""Some of a pool's demonstrations for those who want to see what kind they are: the same ones as long as it stays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from serving.sql.database import Database
from serving.sql.rows import Stored, stored, with_details
from serving.sql.tables import demonstration, embedding
from udr.types import FloatArray

__all__ = ["Encoded", "sample", "sample_encoded"]

_RANGE, _FACTOR = 2**31, 1_327_217_885  # their ratio is near the golden one, so multiples fall evenly (Knuth, 6.4)


class Encoded(NamedTuple):
    """Demonstrations (m) and their vectors (m, d)."""

    rows: list[Stored]
    vectors: FloatArray


def sample(database: Database, pool_id: int, limit: int) -> list[Stored]:
    """At most `limit` demonstrations, without their details, spread over the whole pool, in the order they came."""
    with database.read(fresh=True) as c:
        return [stored(r) for r in c.execute(_among(sa.select(*with_details(None)), pool_id, limit))]


def sample_encoded(database: Database, pool_id: int, encoding_id: int, limit: int) -> Encoded:
    """The same with their vectors; those that have none yet are left out."""
    joined = embedding.join(demonstration, demonstration.c.id == embedding.c.demonstration_id)
    query = sa.select(*with_details(None), embedding.c.data).select_from(joined)
    with database.read(fresh=True) as c:
        own = query.where(embedding.c.encoding_id == encoding_id)
        rows = c.execute(_among(own, pool_id, limit)).all()
    vectors = np.stack([r.data for r in rows]) if rows else np.empty((0, 0), dtype=np.float32)
    return Encoded([stored(r[:-1]) for r in rows], vectors)


def _among(query: sa.Select[Any], pool_id: int, limit: int) -> sa.Select[Any]:
    scattered = (demonstration.c.id % _RANGE) * _FACTOR % _RANGE
    some = sa.select(demonstration.c.id).where(demonstration.c.pool_id == pool_id).order_by(scattered).limit(limit)
    return query.where(demonstration.c.id.in_(some)).order_by(demonstration.c.id)
