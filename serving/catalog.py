"""Pools at work: the only writer of rows and vectors, and the indexes that follow them.

The store is the truth. An index remembers the `seq` it has followed the store to and takes in what came since before
it answers, so a process reads what any process wrote. A pool answers by its `active` encoding alone; another one is
filled in the background and becomes active in one transaction, once it lacks nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serving.batching import EncodingWorker
from serving.retrievers import DENSE, PoolEncoder, Retrievers
from serving.store import EncodingRow, PoolRow, Store, Stored, Written
from udr.bm25 import BM25
from udr.errors import ConfigError, ConflictError, DataError, UDRError, UnknownNameError
from udr.filters import Codebook, Condition
from udr.live_index import LiveIndex
from udr.retriever import Retrieved
from udr.selection import select
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, Hits, Query

__all__ = ["BM25_NAME", "Catalog", "Encoding", "Pool"]

BM25_NAME = "bm25"
_PAGE = 2000  # rows read or encoded at a time
_SPARE = 4  # hits beyond those wanted, for some may be deleted while they are fetched


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's row and its task."""

    row: PoolRow
    spec: TaskSpec


class _Found(NamedTuple):
    retrieved: Retrieved
    row: int


class Encoding:
    """A pool's vectors under one encoding, followed to `seq`."""

    def __init__(self, row: EncodingRow, encoder: PoolEncoder) -> None:
        self.row = row
        self.encoder = encoder
        self.index = LiveIndex(row.dim, row.fingerprint)
        self.seq = 0
        self._following = threading.Lock()

    def follow(self, store: Store, seq: int) -> None:
        """Take in everything up to `seq` at least."""
        if self.seq >= seq:
            return
        with self._following:
            if self.seq >= seq:
                return
            changes = store.changes(self.row.pool_id, self.row.id, self.row.dim, self.seq)
            self.index.add(changes.rows, changes.vectors, changes.metadata)
            self.index.remove(changes.gone)
            self.seq = changes.seq


class _Lexical:
    """BM25 over a pool as it was at `seq`; made anew when the pool has changed."""

    def __init__(self, store: Store, pool_id: int, seq: int) -> None:
        self.seq = seq
        rows: list[Stored] = []
        while page := store.page(pool_id, rows[-1].row if rows else 0, _PAGE):
            rows += page
        self._rows = np.array([s.row for s in rows], dtype=np.int64)
        self._codebook = Codebook()
        self._columns = self._codebook.encode([s.demonstration.metadata for s in rows])
        self._bm25 = BM25([s.demonstration for s in rows]) if rows else None

    def search(self, queries: Sequence[Query], k: int, conditions: Sequence[Condition]) -> Hits:
        """The best k rows that meet the conditions, as an index gives them."""
        hits = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        if self._bm25 is None:
            return hits
        mask = self._codebook.admitted(conditions, self._columns, len(self._rows))
        places, scores = self._bm25.search([q.input for q in queries], len(self._rows) if conditions else k)
        for i in range(len(queries)):
            keep = np.flatnonzero(mask[places[i]])[:k]
            hits.rows[i, : len(keep)] = self._rows[places[i, keep]]
            hits.scores[i, : len(keep)] = scores[i, keep]
        return hits


class Catalog:
    """Pools, their demonstrations, and retrieval over them."""

    def __init__(self, store: Store, retrievers: Retrievers, worker: EncodingWorker) -> None:
        self.store = store
        self.retrievers = retrievers
        self.worker = worker
        self._dense: dict[int, Encoding] = {}
        self._lexical: dict[int, _Lexical] = {}
        self._opening = threading.Lock()
        self._switches: dict[int, _Switch] = {}

    def close(self) -> None:
        """Stop what runs in the background; vectors that it stored are kept for the next switch to that retriever."""
        for switch in list(self._switches.values()):
            switch.stop()

    # -- pools

    def create(self, spec: TaskSpec) -> Pool:
        """Make an empty pool, which answers by the sentence encoder if there is one, else by BM25.

        Raises:
            ConflictError: the name is taken.
        """
        row = self.store.create_pool(spec.name, spec.model_dump(mode="json"))
        if DENSE in self.retrievers.names:
            dense = self._open(Pool(row, spec), DENSE)
            self.store.activate(row.id, dense.row.id)
        return self.pool(spec.name)

    def pool(self, name: str) -> Pool:
        """Look a pool up.

        Raises:
            NotFoundError: there is none of that name.
        """
        row = self.store.pool(name)
        return Pool(row, TaskSpec.parse(row.spec, f"pool {name}"))

    def describe(self, pool: Pool) -> dict[str, Any]:
        """What a client wants to know of a pool."""
        encodings = self.store.encodings(pool.row.id)
        names = {e.id: e.retriever for e in encodings}
        switch = self._switches.get(pool.row.id)
        return {
            "name": pool.row.name,
            "task": pool.spec.model_dump(mode="json"),
            "demonstrations": self.store.count(pool.row.id),
            "retriever": names.get(pool.row.active or 0, BM25_NAME),
            "previous_retriever": names.get(pool.row.previous or 0),
            "encodings": [
                {"retriever": e.retriever, "fingerprint": e.fingerprint, "state": e.state} for e in encodings
            ],
            "switch": switch.as_json() if switch else None,
            "seq": pool.row.seq,
            "created": pool.row.created,
        }

    def delete(self, pool: Pool) -> None:
        """Forget a pool and everything in it."""
        switch = self._switches.pop(pool.row.id, None)
        if switch:
            switch.stop()
        for row in self.store.encodings(pool.row.id):
            self._dense.pop(row.id, None)
        self._lexical.pop(pool.row.id, None)
        self.store.delete_pool(pool.row.id)

    # -- demonstrations

    def write(self, pool: Pool, demonstrations: Sequence[Demonstration], *, replace: bool) -> Written:
        """Store demonstrations with the vectors of the active encoding, all or none; they are found at once.

        Raises:
            DataError: an id twice, or an output that is no label of the task.
            ConflictError: an id stands for another demonstration and `replace` is false.
        """
        twice = {d.id for d in demonstrations}
        if len(twice) < len(demonstrations):
            raise DataError("an id stands twice in this request; each demonstration needs its own")
        for d in demonstrations:
            pool.spec.verbalise(d.output)
        vectors: dict[int, FloatArray] = {}
        if pool.row.active:
            dense = self._encoding(pool, pool.row.active)
            vectors[dense.row.id] = self.worker.encode_demonstrations(dense.encoder, demonstrations)
        written = self.store.write(pool.row.id, demonstrations, vectors, replace=replace)
        active = self.store.pool(pool.row.name).active
        if active and active not in vectors:  # the retriever was switched while these were encoded
            self._fill(pool, self._encoding(pool, active))
        return written

    # -- retrieval

    def retrieve(
        self,
        pool: Pool,
        encoding: Encoding | None,
        queries: Sequence[Query],
        vectors: FloatArray | None,
        k: int,
        *,
        conditions: Sequence[Condition] = (),
        threshold: float | None = None,
        selection: str = "top_k",
        considered: int = 100,
        without_copies: bool = False,
    ) -> list[list[Retrieved]]:
        """The chosen demonstrations of each query, best first.

        Args:
            pool: whose demonstrations.
            encoding: what `choose` gave; None for BM25.
            queries: (n).
            vectors: (n, d) of the queries by that encoding's encoder; None for BM25.
            k: how many.
            conditions: on the metadata.
            threshold: similarities below it are left out.
            selection: a name of udr.selection.SELECTIONS; others than top_k choose among the `considered` best.
            considered: how many those are.
            without_copies: leave out demonstrations whose input is the query's.
        """
        wanted = k if selection == "top_k" else max(k, considered)
        lexical = None if encoding else self._current_lexical(pool)
        if encoding:
            encoding.follow(self.store, pool.row.seq)
        wide = wanted + _SPARE
        while True:
            if encoding and vectors is not None:
                hits = encoding.index.search(vectors, wide, encoding.row.fingerprint, conditions)
            elif lexical:
                hits = lexical.search(queries, wide, conditions)
            else:
                raise ConfigError("a dense retriever needs the vectors of the queries")
            stored = self.store.get(pool.row.id, np.unique(hits.rows[hits.rows >= 0]).tolist())
            results, short = [], False
            for query, rows, scores in zip(queries, hits.rows.tolist(), hits.scores, strict=True):
                found = [
                    _Found(Retrieved(stored[row].demonstration, float(scores[i]), i + 1), row)
                    for i, row in enumerate(rows)
                    if row in stored
                    and (threshold is None or scores[i] >= threshold)
                    and not (without_copies and stored[row].query_hash == query.content_hash)
                ]
                more = rows[-1] >= 0 and (threshold is None or scores[-1] >= threshold)
                short |= more and len(found) < wanted
                results.append(found[:wanted])
            if not short:
                break
            wide *= 4  # copies or rows deleted meanwhile took the places
        return [
            _select(selection, query, found, encoding.index if encoding else None, k)
            for query, found in zip(queries, results, strict=True)
        ]

    def choose(self, pool: Pool, retriever: str) -> Encoding | None:
        """The encoding that answers, or None for BM25.

        Args:
            pool: as it was looked up for this request; the request keeps to it even if it is switched meanwhile.
            retriever: "" for the pool's own, the name of one that it is encoded under, or bm25.

        Raises:
            UnknownNameError: no such retriever.
            ConflictError: the pool is not encoded under it.
        """
        if retriever == BM25_NAME or (not retriever and not pool.row.active):
            return None
        if not retriever:
            return self._encoding(pool, pool.row.active or 0)
        for row in reversed(self.store.encodings(pool.row.id)):
            if row.retriever == retriever and row.state == "ready":
                return self._encoding(pool, row.id)
        if retriever in self.retrievers.names:
            raise ConflictError(
                f"pool {pool.row.name!r} is not encoded under {retriever!r}; "
                f"PUT /v1/pools/{pool.row.name}/retriever encodes it"
            )
        raise UnknownNameError("retriever", retriever, [*self.retrievers.names, BM25_NAME])

    def _current_lexical(self, pool: Pool) -> _Lexical:
        found = self._lexical.get(pool.row.id)
        if found is None or found.seq < pool.row.seq:
            found = self._lexical[pool.row.id] = _Lexical(self.store, pool.row.id, pool.row.seq)
        return found

    # -- encodings

    def switch(self, pool: Pool, retriever: str) -> dict[str, Any]:
        """Encode a pool under another retriever in the background, and let that answer once nothing is missing.

        Raises:
            UnknownNameError: no such retriever.
            ConflictError: a switch of this pool is under way.
        """
        if retriever not in self.retrievers.names:
            raise UnknownNameError("retriever", retriever, self.retrievers.names)
        with self._opening:
            running = self._switches.get(pool.row.id)
            if running and running.state == "encoding":
                raise ConflictError(f"pool {pool.row.name!r} is being switched to {running.retriever!r}; wait for it")
            self._switches[pool.row.id] = switch = _Switch(self, pool, retriever)
        switch.start()
        return switch.as_json()

    def roll_back(self, pool: Pool) -> Pool:
        """Let the encoding answer that did before the last switch, after filling in what came since.

        Raises:
            ConflictError: there was none.
        """
        if not pool.row.previous:
            raise ConflictError(f"pool {pool.row.name!r} has no retriever to go back to")
        dense = self._encoding(pool, pool.row.previous)
        while not self.store.activate(pool.row.id, dense.row.id):
            self._fill(pool, dense)
        return self.pool(pool.row.name)

    def _open(self, pool: Pool, retriever: str) -> Encoding:
        """The encoding of a pool under a retriever, made if need be."""
        sample = [s.demonstration for s in self.store.page(pool.row.id, 0, _PAGE)]
        encoder, weights = self.retrievers.open(retriever, pool.spec, sample)
        row = self.store.open_encoding(pool.row.id, retriever, encoder.fingerprint, encoder.dim, weights)
        return self._dense.setdefault(row.id, Encoding(row, encoder))

    def _encoding(self, pool: Pool, encoding_id: int) -> Encoding:
        """An encoding by its number, with the encoder that made its vectors.

        Raises:
            ConflictError: the retriever's files have changed since.
        """
        if encoding_id not in self._dense:
            (row,) = [e for e in self.store.encodings(pool.row.id) if e.id == encoding_id]
            encoder, _ = self.retrievers.open(row.retriever, pool.spec, (), row.weights)
            if encoder.fingerprint != row.fingerprint:
                raise ConflictError(
                    f"pool {pool.row.name!r} was encoded by another {row.retriever!r} than the service has now; "
                    f"PUT /v1/pools/{pool.row.name}/retriever encodes it anew; retriever=bm25 answers meanwhile"
                )
            self._dense.setdefault(encoding_id, Encoding(row, encoder))
        return self._dense[encoding_id]

    def _fill(self, pool: Pool, dense: Encoding, switch: _Switch | None = None) -> None:
        """Encode what has no vector under an encoding yet."""
        while missing := self.store.unencoded(pool.row.id, dense.row.id, 256):
            if switch and switch.stopped:
                return
            vectors = self.worker.encode_demonstrations(dense.encoder, [s.demonstration for s in missing])
            self.store.add_vectors(pool.row.id, dense.row.id, [s.row for s in missing], vectors)
            if switch:
                switch.done += len(missing)


class _Switch:
    """A pool on its way to another retriever."""

    def __init__(self, catalog: Catalog, pool: Pool, retriever: str) -> None:
        self.retriever = retriever
        self.state = "encoding"
        self.error = ""
        self.done = 0
        self.total = catalog.store.count(pool.row.id)
        self.started = time.time()
        self.stopped = False
        self._catalog = catalog
        self._pool = pool
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopped = True
        self._thread.join()

    def as_json(self) -> dict[str, Any]:
        """Progress: how many demonstrations of how many are encoded."""
        return {
            "retriever": self.retriever,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "error": self.error or None,
            "started": self.started,
        }

    def _run(self) -> None:
        catalog, pool = self._catalog, self._pool
        try:
            dense = catalog._open(pool, self.retriever)
            while not self.stopped:
                catalog._fill(pool, dense, self)
                if not self.stopped and catalog.store.activate(pool.row.id, dense.row.id):
                    self.state = "done"
                    return
            self.state = "stopped"
        except UDRError as error:
            self.state, self.error = "failed", str(error)
        except Exception as error:  # it is shown to the client; the thread has nobody else to tell
            self.state, self.error = "failed", f"{type(error).__name__}: {error}"


def _select(name: str, query: Query, found: Sequence[_Found], index: LiveIndex | None, k: int) -> list[Retrieved]:
    hits = [f.retrieved for f in found]
    if name == "top_k" or not hits:
        return hits[:k]
    chosen = select(
        name,
        np.array([h.similarity for h in hits], dtype=np.float32),
        k,
        vectors=index.vectors([f.row for f in found]) if index else None,
        labels=[h.demonstration.output for h in hits],
        query_text=query.input,
        candidate_texts=[h.demonstration.input for h in hits],
    )
    return [hits[i] for i in chosen]
