"""Pools at work: the only writer of rows and vectors, and the indexes that follow them.

The store is the truth. An index remembers the `seq` it has followed the store to and takes in what came since before
it answers, so a process reads what any process wrote. A pool answers by its `active` encoding; writes keep that one and
the one before it complete. Another one is filled in the background and becomes active in one transaction, once it
lacks nothing.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.batching import EncodingWorker
from serving.choosing import Answer, Found, PassedOver, Search, Vectors, choose
from serving.filling import Tell, encode_stored, fill
from serving.pool_index import Encoding, Lexical, fuse
from serving.retrievers import DENSE, PoolEncoder, Retrievers
from serving.row_memory import RowMemory, characters_of_media
from serving.sql.rows import EncodingRow, PoolRow, Written
from serving.sql.store import Clash, First, RetrieverChanged, Store
from udr.errors import (
    ConfigError,
    ConflictError,
    DataError,
    StoreUnavailable,
    UDRError,
    UnknownNameError,
)
from udr.filters import Codebook, Condition
from udr.retriever import Retrieved
from udr.segments import Segment
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, Hits, Query

__all__ = ["BM25_NAME", "HYBRID", "Catalog", "Pool", "Ranking"]

BM25_NAME = "bm25"
HYBRID = "hybrid"  # BM25 and the pool's own retriever together
_PAGE = 2000  # demonstrations that a new retriever is shown
_LARGE = 64 << 20  # characters of media in a list of demonstrations: what comes after is another page's
_SPARE = 4  # hits beyond those wanted, for some may be deleted while they are fetched


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's row and its task."""

    row: PoolRow
    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class Ranking:
    """What ranks a pool for a request: vectors, words, or both."""

    name: str
    encoding: Encoding | None
    lexical: bool


class Catalog:
    """Pools, their demonstrations, and retrieval over them.

    Args:
        store: the database.
        retrievers: what encodes.
        worker: the thread it does so in.
        max_pools: how many there may be; 0: any number.
        max_pool: demonstrations that each may hold; 0: any number.
        cache: folder for large indexes; None: they are read from the store at every start.
        tag: gives demonstrations that come in with what is known of them beside (see `serving.tagging`).
    """

    def __init__(
        self,
        store: Store,
        retrievers: Retrievers,
        worker: EncodingWorker,
        *,
        max_pools: int = 0,
        max_pool: int = 0,
        cache: Path | None = None,
        tag: Callable[[Sequence[Demonstration]], Sequence[Demonstration]] = list,
    ) -> None:
        self.store = store
        self.retrievers = retrievers
        self.worker = worker
        self.max_pools = max_pools
        self.max_pool = max_pool
        self.tag = tag
        self._cache = cache
        self._dense: dict[int, Encoding] = {}
        self._lexical: dict[int, Lexical] = {}
        self._lexical_locks: dict[int, threading.Lock] = {}
        self._opening = threading.Lock()
        self._rows = RowMemory(store)
        self._specs: dict[int, TaskSpec] = {}

    # -- pools

    def create(self, spec: TaskSpec, front: Mapping[str, Any] | None = None) -> Pool:
        """Make an empty pool, which answers by the sentence encoder if there is one, else by BM25.

        Args:
            spec: the task.
            front: how requests to the LLM server get its demonstrations; None: as usual.

        Raises:
            ConflictError: the name is taken.
            QuotaExceeded: there are as many pools as there may be.
        """
        row = self.store.create_pool(spec.name, spec.model_dump(mode="json"), self.max_pools, front)
        if DENSE in self.retrievers.names:
            self.become(Pool(row, spec), DENSE)
        return self.pool(spec.name, fresh=True)

    def pool(self, name: str, *, fresh: bool = False) -> Pool:
        """Look a pool up; `fresh`: never in a replica of the database.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._parsed(self.store.pool(name, fresh=fresh))

    def pool_of(self, pool_id: int) -> Pool:
        """Look a pool up by its number.

        Raises:
            NotFoundError: it was deleted.
        """
        return self._parsed(self.store.pool_of(pool_id))

    def _parsed(self, row: PoolRow) -> Pool:
        """The pool of a row; its task never changes."""
        if row.id not in self._specs:
            self._specs[row.id] = TaskSpec.parse(row.spec, f"pool {row.name}")
        return Pool(row, self._specs[row.id])

    def describe(self, pool: Pool) -> dict[str, Any]:
        """What a client wants to know of a pool."""
        encodings = self.store.encodings(pool.row.id)
        names = {e.id: e.retriever for e in encodings}
        return {
            "name": pool.row.name,
            "task": pool.spec.model_dump(mode="json"),
            "demonstrations": pool.row.size,
            "retriever": names.get(pool.row.active or 0, BM25_NAME),
            "previous_retriever": names.get(pool.row.previous or 0),
            "encodings": [
                {"retriever": e.retriever, "fingerprint": e.fingerprint, "state": e.state} for e in encodings
            ],
            "front": pool.row.front,
            "seq": pool.row.seq,
            "created": pool.row.created,
        }

    def delete(self, pool: Pool, first: First | None = None) -> None:
        """Forget a pool and everything in it; `first`: what else is done in the same transaction."""
        self.store.delete_pool(pool.row.id, first)
        self.prune()

    def prune(self) -> None:
        """Forget indexes of pools that are no more, and of encodings that do not answer any more."""
        rows = self.store.every_pool()
        answering = {number for row in rows for number in (row.active, row.previous)}
        for number in [n for n in self._dense if n not in answering]:
            self._dense.pop(number, None)
        if self._cache is not None and self._cache.is_dir():
            for folder in self._cache.glob("encoding-*"):
                if folder.name.removeprefix("encoding-") not in map(str, answering):
                    shutil.rmtree(folder, ignore_errors=True)
        pools = {row.id for row in rows}
        for held in (self._lexical, self._lexical_locks, self._specs):
            for number in held.keys() - pools:
                held.pop(number, None)
        self._rows.forget_all_but(pools)

    # -- demonstrations

    def write(
        self,
        pool: Pool,
        demonstrations: Sequence[Demonstration],
        clash: Clash = "refuse",
        first: First | None = None,
    ) -> Written:
        """Store demonstrations with their vectors, all or none; they are found at once.

        Args:
            pool: whose they are.
            demonstrations: with differing ids.
            clash: what becomes of those whose id stands for another one.
            first: what else is done in the same transaction.

        Raises:
            DataError: an id twice, or an output that is no label of the task.
            ConflictError: an id stands for another demonstration and that is refused.
            QuotaExceeded: the pool would hold too many.
        """
        if len({d.id for d in demonstrations}) < len(demonstrations):
            raise DataError("an id stands twice in this request; each demonstration needs its own")
        for d in demonstrations:
            pool.spec.verbalise(d.output)
        demonstrations = self.tag(demonstrations)
        while True:
            vectors = {
                encoding.row.id: self.worker.encode_demonstrations(encoding.encoder, demonstrations)
                for encoding in self._kept(pool)
            }
            try:
                return self.store.write(
                    pool.row.id, demonstrations, vectors, clash=clash, limit=self.max_pool, first=first
                )
            except RetrieverChanged:  # while these were encoded
                pool = self.pool_of(pool.row.id)

    def page(
        self, pool: Pool, after: int, limit: int, conditions: Sequence[Condition] = ()
    ) -> tuple[list[Demonstration], int]:
        """Demonstrations that meet the conditions in the order they came, and the row behind them; 0: no more.

        There are fewer than `limit` where they are large, or no more.

        Args:
            pool: whose they are.
            after: the row that the page before gave; 0: from the first.
            limit: how many.
            conditions: on the metadata.
        """
        found: list[Demonstration] = []
        size = 0
        while True:
            rows = self.store.page(pool.row.id, after, _PAGE if conditions else limit - len(found))
            codebook = Codebook()
            columns = codebook.encode([s.demonstration.metadata for s in rows])
            for stored, admitted in zip(rows, codebook.admitted(conditions, columns, len(rows)), strict=True):
                if admitted:
                    found.append(stored.demonstration)
                    size += characters_of_media(stored.demonstration)
                    if len(found) == limit or size > _LARGE:
                        return found, stored.row
            if not rows:
                return found, 0
            after = rows[-1].row

    def complete(self, pool: Pool, tell: Tell) -> None:
        """Encode whatever of a pool has no vector yet and can be encoded."""
        while True:
            try:
                for encoding in self._kept(pool):
                    fill(self.store, self.worker, encoding, tell)
            except RetrieverChanged:  # while it was filled
                pool = self.pool_of(pool.row.id)
            else:
                return

    def _kept(self, pool: Pool) -> list[Encoding]:
        """The encodings that writes keep complete: the one that answers, and the one before it while it can be had."""
        found = [self._encoding(pool, pool.row.active)] if pool.row.active else []
        if pool.row.previous:
            try:
                found.append(self._encoding(pool, pool.row.previous))
            except StoreUnavailable:
                raise
            except UDRError:  # the service has its retriever no longer
                self.store.forget_previous(pool.row.id, pool.row.previous)
        return found

    # -- retrieval

    def rank_by(self, pool: Pool, retriever: str) -> Ranking:
        """What ranks a pool.

        Args:
            pool: as it was looked up for this request; the request keeps to it even if it is switched meanwhile.
            retriever: "" for the pool's own; bm25; hybrid; or the name of one that the pool is kept encoded under.

        Raises:
            UnknownNameError: no such retriever.
            ConflictError: the pool is not encoded under it.
        """
        active = pool.row.active
        if retriever == BM25_NAME or (not active and retriever in ("", HYBRID)):
            return Ranking(BM25_NAME, None, True)
        if active and retriever in ("", HYBRID):
            encoding = self._encoding(pool, active)
            return Ranking(retriever or encoding.row.retriever, encoding, retriever == HYBRID)
        named = {row.id for row in self.store.encodings(pool.row.id) if row.retriever == retriever}
        for number in (active, pool.row.previous):  # both, where a retriever's files were replaced
            if number in named:
                return Ranking(retriever, self._encoding(pool, number), False)
        if retriever in self.retrievers.names:
            raise ConflictError(
                f"pool {pool.row.name!r} is not encoded under {retriever!r}; "
                f"PUT /v1/pools/{pool.row.name}/retriever encodes it"
            )
        raise UnknownNameError("retriever", retriever, [*self.retrievers.names, BM25_NAME, HYBRID])

    def retrieve(
        self, pool: Pool, ranking: Ranking, queries: Sequence[Query], vectors: FloatArray | None, search: Search
    ) -> list[Answer]:
        """Choose demonstrations for each query.

        Args:
            pool: whose demonstrations.
            ranking: what `rank_by` gave.
            queries: (n).
            vectors: (n, d) of the queries by the ranking's encoding, if it has one.
            search: what is asked for.
        """
        index, segments = None, None
        if ranking.encoding:
            ranking.encoding.follow(self.store, pool.row.seq)
            index = ranking.encoding.index
            segments = index.current()
        wide = search.wanted + search.passed_over + _SPARE
        while True:
            hits = self._hits(pool, ranking, queries, vectors, wide, search.conditions, segments)
            near = np.unique(hits.rows[hits.rows >= 0])
            if index is not None and search.compares_vectors:
                near = near[index.holds(near, segments)]  # words find what a load has not encoded yet
            stored = self._rows.get(pool.row.id, near.tolist())
            answers, short = [], False
            for i, query in enumerate(queries):
                rows, scores = hits.rows[i].tolist(), hits.scores[i].tolist()
                found, passed = [], []
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
                    if row not in stored:
                        continue
                    one = Found(Retrieved(stored[row].demonstration, score, rank), row)
                    if search.threshold is not None and score < search.threshold:
                        passed.append(PassedOver(one.retrieved, f"similarity below the threshold {search.threshold}"))
                    elif search.without_copies and stored[row].query_hash == query.content_hash:
                        passed.append(PassedOver(one.retrieved, "its input is the query's"))
                    else:
                        found.append(one)
                more = rows[-1] >= 0 and (search.threshold is None or scores[-1] >= search.threshold)
                short |= more and len(found) < search.wanted
                own = None
                if index is not None and vectors is not None:
                    own = Vectors(vectors[i], partial(index.vectors, segments=segments))
                answers.append(choose(search, query, found, passed, own))
            if not short:
                return answers
            wide *= 4  # copies or rows deleted meanwhile took the places

    def _hits(
        self,
        pool: Pool,
        ranking: Ranking,
        queries: Sequence[Query],
        vectors: FloatArray | None,
        k: int,
        conditions: Sequence[Condition],
        segments: Sequence[Segment] | None,
    ) -> Hits:
        found = []
        if ranking.encoding:
            if vectors is None:
                raise ConfigError("a dense retriever needs the vectors of the queries")
            index = ranking.encoding.index
            found.append(index.search(vectors, k, ranking.encoding.row.fingerprint, conditions, segments))
        if ranking.lexical:
            found.append(self._words_of(pool).search(queries, k, conditions))
        return fuse(found[0], found[1], k) if len(found) == 2 else found[0]

    def _words_of(self, pool: Pool) -> Lexical:
        """A pool's words as they are now; requests that come together after a write read them once."""
        lexical = self._lexical.get(pool.row.id)
        if lexical is None or lexical.seq < pool.row.seq:
            with self._lexical_locks.setdefault(pool.row.id, threading.Lock()):
                lexical = self._lexical.get(pool.row.id)
                if lexical is None or lexical.seq < pool.row.seq:
                    lexical = self._lexical[pool.row.id] = Lexical(self.store, pool.row.id, pool.row.seq)
        return lexical

    # -- encodings

    def become(self, pool: Pool, retriever: str, tell: Tell | None = None) -> None:
        """Encode a pool under another retriever, and let that answer once nothing is missing.

        Args:
            pool: which goes on to answer as before meanwhile.
            retriever: a name of `Retrievers`; the one that answers too, whose files may have been written anew.
            tell: of how far it is.

        Raises:
            UnknownNameError: no such retriever.
            ArtifactError: its files are damaged.
            DataError: a demonstration cannot be encoded by it (names it and says why).
        """
        sample = [s.demonstration for s in self.store.texts(pool.row.id, 0, _PAGE)]
        encoder, weights = self.retrievers.open(retriever, pool.spec, sample)
        row = self.store.open_encoding(pool.row.id, retriever, encoder.fingerprint, encoder.dim, weights)
        encoding = self._dense.get(row.id) or self._opened(row, encoder)
        while True:
            unread = fill(self.store, self.worker, encoding, tell)
            encoding.follow(self.store, self.pool_of(pool.row.id).row.seq)  # so that the first request finds it so
            if self.store.activate(pool.row.id, row.id):
                break
            if left := self.store.get(pool.row.id, list(unread)):
                raise DataError(
                    f"the pool answers as before, for {len(left)} of its demonstrations cannot be encoded: "
                    f"{unread[min(left)]}; delete or replace what cannot, and switch again"
                )
        self._dense[row.id] = encoding

    def roll_back(self, pool: Pool) -> Pool:
        """Let the encoding answer that did before the last switch.

        Raises:
            ConflictError: there was none, or a demonstration has no vector under it: it cannot be encoded (names it
                and says why), or a load is under way.
        """
        if not pool.row.previous:
            raise ConflictError(f"pool {pool.row.name!r} has no retriever to go back to")
        encoding = self._encoding(pool, pool.row.previous)
        if not self.store.activate(pool.row.id, encoding.row.id):
            missing = self.store.unencoded(pool.row.id, encoding.row.id, 0, 1)
            for why in encode_stored(self.worker, encoding, missing).unread.values():
                raise ConflictError(f"pool {pool.row.name!r}: {why}; delete or replace it, and go back")
            raise ConflictError(f"pool {pool.row.name!r}: a load is under way; go back when it has ended")
        return self.pool_of(pool.row.id)

    def _encoding(self, pool: Pool, encoding_id: int) -> Encoding:
        """An encoding by its number, with the encoder that made its vectors.

        Raises:
            ConflictError: the retriever's files have changed since, or the encoding was dropped.
        """
        found = self._dense.get(encoding_id)
        return found if found is not None else self._open(pool, encoding_id)

    def _open(self, pool: Pool, encoding_id: int) -> Encoding:
        with self._opening:  # requests that come together read a large index once
            if encoding_id in self._dense:
                return self._dense[encoding_id]
            row = next((e for e in self.store.encodings(pool.row.id) if e.id == encoding_id), None)
            if row is None:
                raise ConflictError(f"pool {pool.row.name!r} was switched meanwhile; ask again", 1)
            encoder, _ = self.retrievers.open(row.retriever, pool.spec, (), row.weights, row.fingerprint)
            if encoder.fingerprint != row.fingerprint:
                raise ConflictError(
                    f"pool {pool.row.name!r} was encoded by another {row.retriever!r} than the service has now; "
                    f"PUT /v1/pools/{pool.row.name}/retriever encodes it anew; retriever=bm25 answers meanwhile"
                )
            found = self._dense[encoding_id] = self._opened(row, encoder)
        return found

    def _opened(self, row: EncodingRow, encoder: PoolEncoder) -> Encoding:
        return Encoding(row, encoder, self.store, self._cache / f"encoding-{row.id}" if self._cache else None)

    def tend(self, threads: int) -> None:
        """Have large indexes searched by graphs, and saved; indexes that answer no more are forgotten.

        Args:
            threads: that make graphs; 0: none are made now.

        Raises:
            ArtifactError: one cannot be written.
        """
        self.prune()
        for encoding in list(self._dense.values()):
            encoding.tend(self.store, threads)
            self._rows.read_ahead(encoding.row.pool_id)
