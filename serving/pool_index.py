"""What finds a pool's demonstrations: vectors under one encoding, and words; both follow the store by `seq`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from serving.retrievers import PoolEncoder
from serving.sql.store import EncodingRow, Store, Stored
from udr.bm25 import BM25
from udr.filters import Codebook, Condition
from udr.live_index import LiveIndex
from udr.types import Hits, Query

__all__ = ["Encoding", "Lexical", "fuse"]

_PAGE = 2000  # rows read at a time
_DAMPING = 60  # of reciprocal rank fusion: Cormack et al. 2009


class Encoding:
    """A pool's vectors under one encoding, followed to `seq`."""

    def __init__(self, row: EncodingRow, encoder: PoolEncoder) -> None:
        self.row = row
        self.encoder = encoder
        self.index = LiveIndex(row.dim, row.fingerprint)
        self.seq = 0
        self._following = threading.Lock()

    def follow(self, store: Store, seq: int) -> None:
        """Take in everything up to `seq` at least, as far as the database (a replica may lag behind) has it."""
        if self.seq >= seq:
            return
        with self._following:
            while self.seq < seq:
                changes = store.changes(self.row.pool_id, self.row.id, self.row.dim, self.seq)
                self.index.add(changes.rows, changes.vectors, changes.metadata)
                self.index.remove(changes.gone)
                if changes.seq <= self.seq:
                    return
                self.seq = changes.seq


class Lexical:
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
        hits = _no_hits(len(queries), k)
        if self._bm25 is None:
            return hits
        mask = self._codebook.admitted(conditions, self._columns, len(self._rows))
        places, scores = self._bm25.search([q.input for q in queries], len(self._rows) if conditions else k)
        for i in range(len(queries)):
            keep = np.flatnonzero(mask[places[i]])[:k]
            hits.rows[i, : len(keep)] = self._rows[places[i, keep]]
            hits.scores[i, : len(keep)] = scores[i, keep]
        return hits


def fuse(one: Hits, other: Hits, k: int) -> Hits:
    """Reciprocal rank fusion: a row's score is the sum of 1 / (60 + rank) over the lists that hold it.

    Cormack, Clarke and Büttcher 2009. Scores of words and of vectors have no common scale; ranks have.
    """
    hits = _no_hits(len(one.rows), k)
    for i, lists in enumerate(zip(one.rows.tolist(), other.rows.tolist(), strict=True)):
        scores: dict[int, float] = {}
        for rows in lists:
            for rank, row in enumerate(rows, 1):
                if row >= 0:
                    scores[row] = scores.get(row, 0.0) + 1 / (_DAMPING + rank)
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        hits.rows[i, : len(best)] = [row for row, _ in best]
        hits.scores[i, : len(best)] = [score for _, score in best]
    return hits


def _no_hits(n: int, k: int) -> Hits:
    return Hits(np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32))
