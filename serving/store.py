"""The only SQL: pools, demonstrations and vectors, in SQLite or PostgreSQL. What a method returned from is on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError, IntegrityError

from serving.tables import demonstration, encoding, pool, tombstone, vector
from udr.errors import ConflictError, NotFoundError, StoreUnavailable
from udr.types import Demonstration, FloatArray, Media

__all__ = ["Changes", "EncodingRow", "PoolRow", "Store", "Stored", "Written", "open_store"]

T = TypeVar("T")
_FEW = 500  # values in one IN (…): every database takes so many


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool as its row states it."""

    id: int
    name: str
    spec: Mapping[str, Any]
    seq: int
    active: int | None
    previous: int | None
    created: float


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


class Store:
    """Pools and what belongs to them; every method is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(udr_writing=True)

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Raise StoreUnavailable unless the database answers."""
        with self._read() as c:
            c.execute(sa.select(1))

    # -- pools

    def create_pool(self, name: str, spec: Mapping[str, Any]) -> PoolRow:
        """Make an empty pool.

        Raises:
            ConflictError: the name is taken.
        """
        with self._write() as c:
            try:
                values = {"name": name, "spec": dict(spec), "seq": 0, "created": time.time()}
                row = c.execute(sa.insert(pool).values(values).returning(*pool.c)).one()
            except IntegrityError:
                raise ConflictError(f"pool {name!r} exists already") from None
        return PoolRow(*row)

    def pool(self, name: str) -> PoolRow:
        """Look a pool up.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._read() as c:
            row = c.execute(sa.select(pool).where(pool.c.name == name)).one_or_none()
        if row is None:
            raise NotFoundError(f"no pool {name!r}; GET /v1/pools lists them")
        return PoolRow(*row)

    def pools(self, after: str = "", limit: int = 100) -> list[PoolRow]:
        """Pools by name, from the one after `after`."""
        with self._read() as c:
            rows = c.execute(sa.select(pool).where(pool.c.name > after).order_by(pool.c.name).limit(limit)).all()
        return [PoolRow(*row) for row in rows]

    def delete_pool(self, pool_id: int) -> None:
        """Forget a pool and all that belongs to it."""
        with self._write() as c:
            c.execute(sa.delete(pool).where(pool.c.id == pool_id))

    def count(self, pool_id: int) -> int:
        """Demonstrations of a pool."""
        with self._read() as c:
            query = sa.select(sa.func.count()).where(demonstration.c.pool_id == pool_id)
            return int(c.execute(query).scalar_one())

    # -- demonstrations

    def write(
        self,
        pool_id: int,
        demonstrations: Sequence[Demonstration],
        vectors: Mapping[int, FloatArray],
        *,
        replace: bool,
    ) -> Written:
        """Store demonstrations and their vectors, all or none.

        Args:
            pool_id: whose they are.
            demonstrations: (m) with differing ids.
            vectors: by encoding id, (m, d).
            replace: put a new one in the place of another under its id; else that is an error. One that is there
                already, to the letter, is left alone either way.

        Raises:
            ConflictError: an id stands for something else and `replace` is false.
            NotFoundError: the pool was deleted meanwhile.
        """
        keys = [d.id for d in demonstrations]
        with self._write() as c:
            seq = _raise_seq(c, pool_id)
            known = _known(c, pool_id, keys)
            fresh = [i for i, d in enumerate(demonstrations) if known.get(d.id, (0, ""))[1] != _hash(d)]
            old = [known[keys[i]][0] for i in fresh if keys[i] in known]
            if old and not replace:
                names = ", ".join(repr(keys[i]) for i in fresh if keys[i] in known)
                raise ConflictError(f"id {names[:200]}: stands for another demonstration; PUT or mode=upsert replaces")
            _bury(c, pool_id, old, seq)
            rows = _insert(c, pool_id, [demonstrations[i] for i in fresh], seq)
            for encoding_id, all_vectors in vectors.items():
                _insert_vectors(c, encoding_id, rows, all_vectors[fresh], seq)
        return Written(len(fresh) - len(old), len(old), len(keys) - len(fresh), seq)

    def delete(self, pool_id: int, keys: Sequence[str]) -> int:
        """Forget demonstrations by their ids; say how many there were."""
        with self._write() as c:
            seq = _raise_seq(c, pool_id)
            rows = [row for row, _ in _known(c, pool_id, keys).values()]
            _bury(c, pool_id, rows, seq)
        return len(rows)

    def get(self, pool_id: int, rows: Sequence[int]) -> dict[int, Stored]:
        """Demonstrations by row; those that are gone are missing."""
        found = {}
        with self._read() as c:
            for some in _portions(rows):
                query = sa.select(demonstration).where(demonstration.c.pool_id == pool_id, demonstration.c.id.in_(some))
                found.update({r.id: _stored(r) for r in c.execute(query)})
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
        return _stored(row)

    def page(self, pool_id: int, after: int = 0, limit: int = 1000) -> list[Stored]:
        """Demonstrations in the order they came, from the row after `after`."""
        own = (demonstration.c.pool_id == pool_id) & (demonstration.c.id > after)
        with self._read() as c:
            rows = c.execute(sa.select(demonstration).where(own).order_by(demonstration.c.id).limit(limit)).all()
        return [_stored(r) for r in rows]

    # -- encodings

    def open_encoding(
        self, pool_id: int, retriever: str, fingerprint: str, dim: int, weights: Sequence[float] | None = None
    ) -> EncodingRow:
        """The pool's encoding of that fingerprint, made if need be: `building`, without a vector."""
        own = (encoding.c.pool_id == pool_id) & (encoding.c.fingerprint == fingerprint)
        with self._write() as c:
            _raise_seq(c, pool_id)  # two that open the same one wait for each other here
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
        with self._read() as c:
            query = sa.select(encoding).where(encoding.c.pool_id == pool_id).order_by(encoding.c.id)
            return [EncodingRow(*row) for row in c.execute(query)]

    def unencoded(self, pool_id: int, encoding_id: int, limit: int) -> list[Stored]:
        """Demonstrations that have no vector under an encoding yet."""
        missing = ~sa.exists().where(
            vector.c.encoding_id == encoding_id, vector.c.demonstration_id == demonstration.c.id
        )
        query = sa.select(demonstration).where(demonstration.c.pool_id == pool_id, missing)
        with self._read() as c:
            return [_stored(r) for r in c.execute(query.order_by(demonstration.c.id).limit(limit))]

    def add_vectors(self, pool_id: int, encoding_id: int, rows: Sequence[int], vectors: FloatArray) -> None:
        """Store vectors (m, d) of demonstrations that are there still and have none under this encoding."""
        with self._write() as c:
            seq = _raise_seq(c, pool_id)
            there: set[int] = set()
            for some in _portions(rows):
                own = vector.c.encoding_id == encoding_id
                done = sa.select(vector.c.demonstration_id).where(own, vector.c.demonstration_id.in_(some))
                query = sa.select(demonstration.c.id).where(
                    demonstration.c.id.in_(some), demonstration.c.id.not_in(done)
                )
                there.update(c.execute(query).scalars())
            keep = [i for i, row in enumerate(rows) if row in there]
            _insert_vectors(c, encoding_id, [rows[i] for i in keep], vectors[keep], seq)

    def activate(self, pool_id: int, encoding_id: int) -> bool:
        """Let an encoding answer, if every demonstration has its vector: True, or False with nothing changed."""
        with self._write() as c:
            _raise_seq(c, pool_id)
            count = sa.select(sa.func.count())
            demonstrations = c.execute(count.where(demonstration.c.pool_id == pool_id)).scalar_one()
            if c.execute(count.where(vector.c.encoding_id == encoding_id)).scalar_one() < demonstrations:
                return False
            c.execute(sa.update(encoding).where(encoding.c.id == encoding_id).values(state="ready"))
            own = (pool.c.id == pool_id) & (pool.c.active.is_(None) | (pool.c.active != encoding_id))
            c.execute(sa.update(pool).where(own).values(previous=pool.c.active, active=encoding_id))
            return True

    def changes(self, pool_id: int, encoding_id: int, dim: int, after: int) -> Changes:
        """What was written under an encoding since `after`, up to now."""
        with self._read() as c:
            upto = c.execute(sa.select(pool.c.seq).where(pool.c.id == pool_id)).scalar_one_or_none()
            if upto is None:
                raise NotFoundError("the pool was deleted")
            since = (vector.c.seq > after) & (vector.c.seq <= upto)
            query = (
                sa.select(demonstration.c.id, vector.c.data, demonstration.c.metadata)
                .join(demonstration, demonstration.c.id == vector.c.demonstration_id)
                .where(vector.c.encoding_id == encoding_id, since)
                .order_by(demonstration.c.id)
            )
            rows = c.execute(query).all()
            buried = sa.select(tombstone.c.demonstration_id).where(
                tombstone.c.pool_id == pool_id, tombstone.c.seq > after, tombstone.c.seq <= upto
            )
            gone = list(c.execute(buried).scalars()) if after else []
        data = np.frombuffer(b"".join(r.data for r in rows), dtype="<f4").reshape(len(rows), dim)
        return Changes(int(upto), [r.id for r in rows], data, [r.metadata for r in rows], gone)

    # -- connections

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with _told(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with _told(), self._writing.connect() as connection, connection.begin():
            yield connection


@contextmanager
def _told() -> Iterator[None]:
    """A database that fails is one line."""
    try:
        yield
    except DBAPIError as error:
        raise StoreUnavailable(f"the database failed ({str(error.orig).splitlines()[0]}); nothing was stored") from None


def _raise_seq(c: sa.Connection, pool_id: int) -> int:
    """Take the pool's lock and its next number; both are kept until the transaction ends, so numbers come in order."""
    raised = sa.update(pool).where(pool.c.id == pool_id).values(seq=pool.c.seq + 1).returning(pool.c.seq)
    seq = c.execute(raised).scalar_one_or_none()
    if seq is None:
        raise NotFoundError("the pool was deleted")
    return int(seq)


def _known(c: sa.Connection, pool_id: int, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Row and hash of each key that the pool has."""
    found: dict[str, tuple[int, str]] = {}
    columns = sa.select(demonstration.c.key, demonstration.c.id, demonstration.c.hash)
    for some in _portions(keys):
        query = columns.where(demonstration.c.pool_id == pool_id, demonstration.c.key.in_(some))
        found.update({key: (row, content) for key, row, content in c.execute(query)})
    return found


def _bury(c: sa.Connection, pool_id: int, rows: Sequence[int], seq: int) -> None:
    if not rows:
        return
    c.execute(sa.insert(tombstone), [{"demonstration_id": r, "pool_id": pool_id, "seq": seq} for r in rows])
    for some in _portions(rows):
        c.execute(sa.delete(demonstration).where(demonstration.c.id.in_(some)))


def _insert(c: sa.Connection, pool_id: int, demonstrations: Sequence[Demonstration], seq: int) -> list[int]:
    """Give each a row, in order."""
    if not demonstrations:
        return []
    values = [
        {
            "pool_id": pool_id,
            "key": d.id,
            "seq": seq,
            "hash": _hash(d),
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


def _insert_vectors(c: sa.Connection, encoding_id: int, rows: Sequence[int], vectors: FloatArray, seq: int) -> None:
    if not len(rows):
        return
    raw = np.ascontiguousarray(vectors, dtype="<f4")
    values = [
        {"encoding_id": encoding_id, "demonstration_id": r, "seq": seq, "data": v.tobytes()}
        for r, v in zip(rows, raw, strict=True)
    ]
    c.execute(sa.insert(vector), values)


def _details(d: Demonstration) -> dict[str, Any]:
    """What a demonstration has beside input and output, without what is empty; media by address only."""
    found: dict[str, Any] = {"choices": list(d.choices), "references": list(d.references)}
    found["media"] = [{"kind": m.kind, "uri": m.uri} for m in d.media]
    return {key: value for key, value in found.items() if value}


def _hash(d: Demonstration) -> str:
    return Demonstration("", d.content_hash, repr((d.references, sorted(d.metadata.items())))).content_hash


def _stored(row: Any) -> Stored:
    details = row.details
    own = Demonstration(
        row.key,
        row.input,
        row.output,
        tuple(details.get("choices", ())),
        tuple(details.get("references", ())),
        tuple(Media(**m) for m in details.get("media", ())),
        row.metadata,
    )
    return Stored(row.id, own, row.query_hash)


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[i : i + _FEW] for i in range(0, len(values), _FEW))


def open_store(url: str) -> Store:
    """Open a database, made or brought up to date if need be: `sqlite:///FILE` or `postgresql+psycopg://…`.

    Raises:
        StoreUnavailable: it cannot be opened.
    """
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with _told(), engine.execution_options(udr_writing=True).connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return Store(engine)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """An answered write survives a power cut (FULL); readers and the writer do not wait for each other (WAL)."""
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes its lock at once: one that began by reading would fail where another wrote meanwhile."""
    writing = connection.get_execution_options().get("udr_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
