"""Pools, demonstrations and vectors in the database. What a method returned from is on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serving.sql.audit import record
from serving.sql.database import Database
from serving.sql.jobs import LineError, Step, advance
from serving.sql.rows import (
    Changes,
    EncodingRow,
    PoolRow,
    Stored,
    Written,
    bury,
    hash_of,
    insert,
    insert_vectors,
    known,
    lock,
    portions,
    stored,
    with_details,
)
from serving.sql.tables import demonstration, embedding, encoding, pool, saved_index, tombstone
from udr.errors import ConflictError, NotFoundError, QuotaExceeded, UDRError
from udr.types import Demonstration, FloatArray

__all__ = ["Clash", "First", "RetrieverChanged", "Store"]

_TAKEN = "stands for another demonstration"
_MEDIA = 64 << 20  # characters of media that are read at once
_BUFFERED = 20  # rows that PostgreSQL sends at once where they may be large
_CHANGES = 1 << 16  # rows that an index takes in at once

# asked for by every request, so made once
_POOL = sa.select(pool).where(pool.c.name == sa.bindparam("name"))
_ROWS = sa.select(demonstration).where(
    demonstration.c.pool_id == sa.bindparam("pool"), demonstration.c.id.in_(sa.bindparam("rows", expanding=True))
)

Clash = Literal["refuse", "replace", "skip"]
"""What becomes of a demonstration whose id stands for another one: the whole write is refused, it takes the other's
place, or it is left out."""
First = Callable[[sa.Connection], bool]
"""What a change does before anything else, in the same transaction; False: nothing is to be changed."""


class RetrieverChanged(UDRError):
    """The pool keeps an encoding that the vectors of a write are not of."""


class Store:
    """Pools and what belongs to them; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._read, self._write = database.read, database.write

    # -- pools

    def create_pool(
        self, name: str, spec: Mapping[str, Any], limit: int = 0, front: Mapping[str, Any] | None = None
    ) -> PoolRow:
        """Make an empty pool.

        Args:
            name: unlike all others.
            spec: of its task.
            front: how requests to the LLM server get its demonstrations; None: as usual.
            limit: pools that there may be; 0: any number.

        Raises:
            ConflictError: the name is taken.
            QuotaExceeded: there are as many as there may be.
        """
        with self._write() as c:
            if limit and c.execute(sa.select(sa.func.count()).select_from(pool)).scalar_one() >= limit:
                raise QuotaExceeded(f"there are {limit} pools, as many as this service keeps; delete one")
            try:
                values = {"name": name, "spec": dict(spec), "seq": 0, "size": 0, "created": time.time()}
                values["front"] = None if front is None else dict(front)
                row = c.execute(sa.insert(pool).values(values).returning(*pool.c)).one()
            except IntegrityError:
                raise ConflictError(f"pool {name!r} exists already") from None
            record(c, "pool.create", name)
        return PoolRow(*row)

    def pool(self, name: str, *, fresh: bool = False) -> PoolRow:
        """Look a pool up; `fresh`: never in a replica.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._read(fresh=fresh) as c:
            row = c.execute(_POOL, {"name": name}).one_or_none()
        if row is None:
            raise NotFoundError(f"no pool {name!r}; GET /v1/pools lists them")
        return PoolRow(*row)

    def pool_of(self, pool_id: int) -> PoolRow:
        """Look a pool up by its number.

        Raises:
            NotFoundError: it was deleted.
        """
        with self._read(fresh=True) as c:
            row = c.execute(sa.select(pool).where(pool.c.id == pool_id)).one_or_none()
        if row is None:
            raise NotFoundError("the pool was deleted")
        return PoolRow(*row)

    def every_pool(self) -> list[PoolRow]:
        """All of them."""
        with self._read(fresh=True) as c:
            return [PoolRow(*row) for row in c.execute(sa.select(pool))]

    def pools(self, after: str = "", limit: int = 100, among: Sequence[str] | None = None) -> list[PoolRow]:
        """Pools by name, from the one after `after`; `among`: only those."""
        query = sa.select(pool).where(pool.c.name > after).order_by(pool.c.name).limit(limit)
        with self._read() as c:
            rows = c.execute(query if among is None else query.where(pool.c.name.in_(among))).all()
        return [PoolRow(*row) for row in rows]

    def set_front(self, pool_id: int, front: Mapping[str, Any], first: First | None = None) -> None:
        """Say how requests to the LLM server get the pool's demonstrations; `first`: what else is done.

        Raises:
            NotFoundError: the pool was deleted.
        """
        with self._write() as c:
            if first is not None and not first(c):
                return
            changed = sa.update(pool).where(pool.c.id == pool_id).values(front=dict(front)).returning(pool.c.name)
            name = c.execute(changed).scalar_one_or_none()
            if name is None:
                raise NotFoundError("the pool was deleted")
            record(c, "pool.front", name)

    def delete_pool(self, pool_id: int, first: First | None = None) -> None:
        """Forget a pool and all that belongs to it; `first`: what else is done."""
        with self._write() as c:
            if first is not None and not first(c):
                return
            name = c.execute(sa.delete(pool).where(pool.c.id == pool_id).returning(pool.c.name)).scalar_one_or_none()
            if name is not None:
                record(c, "pool.delete", name)

    # -- demonstrations

    def write(
        self,
        pool_id: int,
        demonstrations: Sequence[Demonstration],
        vectors: Mapping[int, FloatArray],
        *,
        clash: Clash = "refuse",
        limit: int = 0,
        step: Step | None = None,
        first: First | None = None,
    ) -> Written:
        """Store demonstrations and their vectors, all or none; those that are there to the letter are left alone.

        Args:
            pool_id: whose they are.
            demonstrations: (m) with differing ids.
            vectors: by encoding id, (m, d).
            clash: what becomes of those whose id stands for another one.
            limit: demonstrations that the pool may hold; 0: any number.
            step: of the job that writes these, noted in the same transaction.
            first: what else is done.

        Raises:
            ConflictError: an id stands for something else and the clash is refused.
            QuotaExceeded: the pool would hold too many.
            RetrieverChanged: `vectors` lack those of an encoding that the pool keeps (not asked of a job, which
                completes them afterwards), or are of one that was dropped.
            NotFoundError: the pool was deleted meanwhile.
            JobLost: the job is not this process's any more.
        """
        keys = [d.id for d in demonstrations]
        with self._write() as c:
            row = lock(c, pool_id)
            dropped = vectors.keys() - _encodings(c, pool_id) if vectors else ()
            if dropped or (step is None and {row.active, row.previous} - {None} - vectors.keys()):
                raise RetrieverChanged("the pool was switched to another retriever meanwhile; write again")
            if first is not None and not first(c):
                return Written(0, 0, len(demonstrations), row.seq)
            there = known(c, pool_id, keys)
            unlike = [i for i, d in enumerate(demonstrations) if there.get(d.id, (0, ""))[1] != hash_of(d)]
            clashing = [keys[i] for i in unlike if keys[i] in there]
            if clashing and clash == "refuse":
                names = ", ".join(map(repr, clashing))
                raise ConflictError(f"id {names[:200]}: {_TAKEN}; PUT or mode=upsert replaces")
            fresh = [i for i in unlike if clash == "replace" or keys[i] not in there]
            old = [there[key][0] for key in clashing] if clash == "replace" else []
            size = row.size + len(fresh) - len(old)
            if limit and len(fresh) > len(old) and size > limit:
                raise QuotaExceeded(f"the pool would hold {size} demonstrations; the limit is {limit}")
            bury(c, pool_id, old, row.seq)
            rows = insert(c, pool_id, [demonstrations[i] for i in fresh], row.seq)
            for encoding_id, all_vectors in vectors.items():
                insert_vectors(c, encoding_id, rows, all_vectors[fresh], row.seq)
            c.execute(sa.update(pool).where(pool.c.id == pool_id).values(size=size))
            created, unchanged = len(fresh) - len(old), len(keys) - len(unlike)
            if step is not None:
                left_out = clashing if clash == "skip" else []
                refused = [LineError(step.lines[key], f"id {key!r}: {_TAKEN}; upsert replaces") for key in left_out]
                told = step._replace(refused=sorted([*step.refused, *refused]))
                advance(c, told, created=created, replaced=len(old), unchanged=unchanged)
            elif fresh:
                record(c, "demonstrations.write", row.name, created=created, replaced=len(old))
        return Written(created, len(old), unchanged, row.seq)

    def delete(self, pool_id: int, keys: Sequence[str], first: First | None = None) -> int:
        """Forget demonstrations by their ids; say how many there were. `first`: what else is done."""
        with self._write() as c:
            row = lock(c, pool_id)
            if first is not None and not first(c):
                return 0
            rows = [number for number, _ in known(c, pool_id, keys).values()]
            bury(c, pool_id, rows, row.seq)
            c.execute(sa.update(pool).where(pool.c.id == pool_id).values(size=row.size - len(rows)))
            if rows:
                record(c, "demonstrations.delete", row.name, deleted=len(rows))
        return len(rows)

    def get(self, pool_id: int, rows: Sequence[int]) -> dict[int, Stored]:
        """Demonstrations by row; those that are gone are missing."""
        found = {}
        with self._read() as c:
            for some in portions(rows):
                found.update({r[0]: stored(r) for r in c.execute(_ROWS, {"pool": pool_id, "rows": some}).all()})
        return found

    def by_key(self, pool_id: int, key: str) -> Stored:
        """One demonstration by its id.

        Raises:
            NotFoundError: the pool has none.
        """
        with self._read() as c:
            query = sa.select(demonstration).where(demonstration.c.pool_id == pool_id, demonstration.c.key == key)
            row = c.execute(query).one_or_none()
        if row is None:
            raise NotFoundError(f"no demonstration {key!r} in this pool")
        return stored(row)

    def page(self, pool_id: int, after: int = 0, limit: int = 1000) -> list[Stored]:
        """Demonstrations in the order they came, from the row after `after`; fewer where they are large."""
        with self._read() as c:
            return _first(c, _in_order(sa.select(demonstration), pool_id, after, limit))

    def texts(self, pool_id: int, after: int = 0, limit: int = 1000) -> list[Stored]:
        """The same without choices, references and media."""
        with self._read() as c:
            return [stored(r) for r in c.execute(_in_order(sa.select(*with_details(None)), pool_id, after, limit))]

    def light(self, pool_id: int, after: int, limit: int, heaviest: int) -> tuple[list[Stored], int]:
        """Those of the next `limit` demonstrations that have no more than so many characters of choices and media.

        Also gives the row behind all of them; 0: there are no more.
        """
        details = sa.case(
            (sa.func.length(sa.cast(demonstration.c.details, sa.Text)) <= heaviest, demonstration.c.details)
        )
        with self._read() as c:
            rows = c.execute(_in_order(sa.select(*with_details(details)), pool_id, after, limit)).all()
        return [stored(r) for r in rows if r.details is not None], rows[-1].id if rows else 0

    # -- encodings

    def open_encoding(
        self, pool_id: int, retriever: str, fingerprint: str, dim: int, weights: Sequence[float] | None = None
    ) -> EncodingRow:
        """The pool's encoding of that fingerprint, made if need be: `building`, without a vector.

        Others that were begun and given up are dropped.
        """
        own = (encoding.c.pool_id == pool_id) & (encoding.c.fingerprint == fingerprint)
        with self._write() as c:
            lock(c, pool_id)  # two that open the same one wait for each other here
            others = (encoding.c.pool_id == pool_id) & (encoding.c.fingerprint != fingerprint)
            c.execute(sa.delete(encoding).where(others, encoding.c.state == "building"))
            row = c.execute(sa.select(encoding).where(own)).one_or_none()
            if row is None:
                values = {
                    "pool_id": pool_id,
                    "retriever": retriever,
                    "fingerprint": fingerprint,
                    "dim": dim,
                    "weights": list(weights) if weights else None,
                    "state": "building",
                    "created": time.time(),
                }
                row = c.execute(sa.insert(encoding).values(values).returning(*encoding.c)).one()
        return EncodingRow(*row)

    def encodings(self, pool_id: int) -> list[EncodingRow]:
        """All encodings of a pool, the oldest first."""
        with self._read(fresh=True) as c:
            query = sa.select(encoding).where(encoding.c.pool_id == pool_id).order_by(encoding.c.id)
            return [EncodingRow(*row) for row in c.execute(query)]

    def unencoded(self, pool_id: int, encoding_id: int, after: int, limit: int) -> list[Stored]:
        """Demonstrations that have no vector under an encoding yet, in order of their rows from the one after.

        There are fewer than `limit` where they are large, or no more.
        """
        own = (embedding.c.encoding_id == encoding_id) & (embedding.c.demonstration_id == demonstration.c.id)
        query = _in_order(sa.select(demonstration).where(~sa.exists().where(own)), pool_id, after, limit)
        with self._read(fresh=True) as c:
            return _first(c, query)

    def add_vectors(self, pool_id: int, encoding_id: int, rows: Sequence[int], vectors: FloatArray) -> None:
        """Store vectors (m, d) of demonstrations that are there still and have none under this encoding.

        Raises:
            RetrieverChanged: the encoding was dropped.
            NotFoundError: the pool was deleted.
        """
        with self._write() as c:
            seq = lock(c, pool_id).seq
            if encoding_id not in _encodings(c, pool_id):
                raise RetrieverChanged("the pool was switched to yet another retriever meanwhile")
            there: set[int] = set()
            for some in portions(rows):
                own = embedding.c.encoding_id == encoding_id
                done = sa.select(embedding.c.demonstration_id).where(own, embedding.c.demonstration_id.in_(some))
                query = sa.select(demonstration.c.id).where(
                    demonstration.c.id.in_(some), demonstration.c.id.not_in(done)
                )
                there.update(c.execute(query).scalars())
            keep = [i for i, row in enumerate(rows) if row in there]
            insert_vectors(c, encoding_id, [rows[i] for i in keep], vectors[keep], seq)

    def activate(self, pool_id: int, encoding_id: int) -> bool:
        """Let an encoding answer, if every demonstration has its vector: True, or False with nothing changed.

        The one that answered is kept beside it for a roll-back; all others are dropped.

        Raises:
            ConflictError: the encoding was dropped.
            NotFoundError: the pool was deleted.
        """
        with self._write() as c:
            row = lock(c, pool_id)
            if encoding_id not in _encodings(c, pool_id):
                raise ConflictError(f"pool {row.name!r} was switched meanwhile; ask again")
            vectors = sa.select(sa.func.count()).where(embedding.c.encoding_id == encoding_id)
            if c.execute(vectors).scalar_one() < row.size:
                return False
            this = encoding.c.id == encoding_id
            ready = sa.update(encoding).where(this).values(state="ready").returning(encoding.c.retriever)
            retriever = c.execute(ready).scalar_one()  # read at once: SQLite commits under no open cursor
            if row.active != encoding_id:
                values = {"previous": row.active, "active": encoding_id}
                c.execute(sa.update(pool).where(pool.c.id == pool_id).values(values))
                kept = [encoding_id, row.active or encoding_id]
                old = (encoding.c.pool_id == pool_id) & (encoding.c.state == "ready") & encoding.c.id.not_in(kept)
                c.execute(sa.delete(encoding).where(old))
                record(c, "pool.switch", row.name, retriever=retriever)
            return True

    def forget_previous(self, pool_id: int, encoding_id: int) -> None:
        """Drop the encoding that answered before, if it is still this one and no switch or roll-back came between."""
        with self._write() as c:
            if lock(c, pool_id).previous == encoding_id:
                c.execute(sa.update(pool).where(pool.c.id == pool_id).values(previous=None))
                c.execute(sa.delete(encoding).where(encoding.c.id == encoding_id))

    def changes(self, pool_id: int, encoding_id: int, dim: int, after: int, limit: int = _CHANGES) -> Changes:
        """What was written under an encoding since `after`: all of it, or as many whole writes as make `limit` rows.

        What it gives is in order of `seq`, and complete up to the one that it states.
        """
        columns = (demonstration.c.id, embedding.c.seq, embedding.c.data, demonstration.c.metadata)
        joined = embedding.join(demonstration, demonstration.c.id == embedding.c.demonstration_id)
        with self._read() as c:
            upto = c.execute(sa.select(pool.c.seq).where(pool.c.id == pool_id)).scalar_one_or_none()
            if upto is None:
                raise NotFoundError("the pool was deleted")
            since = (embedding.c.encoding_id == encoding_id) & (embedding.c.seq > after) & (embedding.c.seq <= upto)
            query = sa.select(*columns).select_from(joined).where(since).order_by(embedding.c.seq)
            rows = c.execute(query.limit(limit + 1)).all()
            if len(rows) > limit:
                whole = [r for r in rows if r.seq < rows[-1].seq]
                # one write of more than the limit is taken whole
                rows = whole or c.execute(query.where(embedding.c.seq == rows[-1].seq)).all()
                upto = rows[-1].seq
            buried = sa.select(tombstone.c.demonstration_id).where(
                tombstone.c.pool_id == pool_id, tombstone.c.seq > after, tombstone.c.seq <= upto
            )
            gone = list(c.execute(buried).scalars()) if after else []
        data = np.empty((len(rows), dim), dtype=np.float32)
        for i, r in enumerate(rows):
            data[i] = r.data
        return Changes(int(upto), [r.id for r in rows], data, [r.metadata for r in rows], gone)

    def note_save(self, encoding_id: int, token: str, before: str | None) -> bool:
        """Note that an encoding's index is about to be saved under a token: True, or False with nothing noted.

        Args:
            encoding_id: whose index it is.
            token: new.
            before: of the save that the index goes on from; a database that was put back since does not know it. None:
                it goes on from none.
        """
        with self._write() as c:
            there = c.execute(sa.select(encoding.c.id).where(encoding.c.id == encoding_id)).one_or_none()
            own = sa.select(saved_index.c.token).where(saved_index.c.encoding_id == encoding_id)
            if there is None or (before is not None and before not in c.execute(own).scalars().all()):
                return False
            c.execute(sa.insert(saved_index).values(token=token, encoding_id=encoding_id))
        return True

    def knows_save(self, encoding_id: int, token: str) -> bool:
        """Tell whether the database was at some time the one beside which an encoding's index was saved."""
        own = (saved_index.c.encoding_id == encoding_id) & (saved_index.c.token == token)
        with self._read(fresh=True) as c:
            return c.execute(sa.select(saved_index.c.token).where(own)).one_or_none() is not None

    def forget_save(self, token: str) -> None:
        """Forget a save that another one has taken the place of."""
        with self._write() as c:
            c.execute(sa.delete(saved_index).where(saved_index.c.token == token))


def _in_order(query: sa.Select[Any], pool_id: int, after: int, limit: int) -> sa.Select[Any]:
    own = (demonstration.c.pool_id == pool_id) & (demonstration.c.id > after)
    return query.where(own).order_by(demonstration.c.id).limit(limit)


def _first(c: sa.Connection, query: sa.Select[Any]) -> list[Stored]:
    """Demonstrations until they hold more than _MEDIA; what comes after is not read from the database."""
    found, size = [], 0
    with c.execute(query.execution_options(stream_results=True, max_row_buffer=_BUFFERED)) as rows:
        for row in rows:
            found.append(stored(row))
            size += sum(len(m.uri) for m in found[-1].demonstration.media)
            if size > _MEDIA:
                break
    return found


def _encodings(c: sa.Connection, pool_id: int) -> set[int]:
    """The numbers of a pool's encodings."""
    return set(c.execute(sa.select(encoding.c.id).where(encoding.c.pool_id == pool_id)).scalars())
