"""What finds a pool's demonstrations: vectors under one encoding, and words; both follow the store by `seq`."""

from __future__ import annotations

import fcntl
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog

from serving.retrievers import PoolEncoder
from serving.sql.rows import EncodingRow, Stored
from serving.sql.store import Store
from udr.bm25 import BM25
from udr.errors import ArtifactError, UDRError
from udr.filters import Codebook, Condition
from udr.live_index import LiveIndex, load_live_index
from udr.types import Hits, Query

__all__ = ["Encoding", "Lexical", "fuse"]

_log = structlog.get_logger("udr.serving")
_PAGE = 2000  # rows read at a time
_WORTH = 50_000  # rows of an index that is saved: fewer are read from the store in a moment
_DAMPING = 60  # of reciprocal rank fusion: Cormack et al. 2009


class Encoding:
    """A pool's vectors under one encoding, followed to `seq`.

    Args:
        row: of the store.
        encoder: that made the vectors.
        store: where they are.
        folder: holds the index as it was some time ago, if that is worth it; the store is asked for the rest. None:
            nothing is kept.
    """

    def __init__(self, row: EncodingRow, encoder: PoolEncoder, store: Store, folder: Path | None = None) -> None:
        self.row = row
        self.encoder = encoder
        self.index = LiveIndex(row.dim, row.fingerprint)
        self.seq = 0
        self._folder = folder
        self._saved = (0, 0)  # seq, and rows in graphs
        self._goes_on_from: str | None = None  # the token of the save that was read, or of the last one
        self._noted: str | None = None  # the token of the last save, if it was this process's
        self._following = threading.Lock()
        if folder is not None and folder.is_dir():
            self._open(folder, store)

    def _open(self, folder: Path, store: Store) -> None:
        """Take the index from the folder, if it is whole and what the store holds."""
        try:
            index, state = load_live_index(folder)
            if not store.knows_save(self.row.id, state["token"]):
                raise ArtifactError("of another database, or of a later day of this one")
            seq = int(state["seq"])
            changes = store.changes(self.row.pool_id, self.row.id, self.row.dim, seq)
            if changes.seq < seq:
                raise ArtifactError("the database is older")
            while True:
                index.add(changes.rows, changes.vectors, changes.metadata)
                index.remove(changes.gone)
                seq, last = changes.seq, seq
                if seq == last:
                    break
                changes = store.changes(self.row.pool_id, self.row.id, self.row.dim, seq)
        except (UDRError, KeyError, TypeError, ValueError) as error:
            _log.warning("index cache refused; it is made anew", folder=str(folder), error=str(error))
            return
        self.index, self.seq, self._saved = index, seq, (seq, index.in_graphs)
        self._goes_on_from = state["token"]

    def tend(self, store: Store, threads: int) -> None:
        """Make graphs of many rows (with so many threads; 0: not now), and save a large index that has changed.

        The database learns a token of each save before the files do. One that is put back to an earlier day does not
        know it, whatever numbers its rows are given from then on.

        Raises:
            ArtifactError: it cannot be written, or is not of the database as it is now.
        """
        while threads and self.index.improve(threads):
            pass
        if self._folder is None or len(self.index) < _WORTH or self._saved == (self.seq, self.index.in_graphs):
            return
        with self._following:
            seq, segments = self.seq, self.index.current()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process is at it
            token = uuid.uuid4().hex
            if not store.note_save(self.row.id, token, self._goes_on_from):
                raise ArtifactError(
                    f"{self._folder}: not saved, for the database was put back while it was served; start anew"
                )
            try:
                self.index.save(self._folder, {"token": token, "seq": seq}, segments)
            except ArtifactError:
                store.forget_save(token)
                raise
        former, self._noted, self._goes_on_from = self._noted, token, token
        if former is not None:  # those of other processes are theirs to go on from
            store.forget_save(former)
        self._saved = seq, self.index.in_graphs

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
        while page := store.texts(pool_id, rows[-1].row if rows else 0, _PAGE):
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
        admitted = self._codebook.admitted(conditions, self._columns, len(self._rows)) if conditions else None
        places, scores = self._bm25.search([q.input for q in queries], k, admitted)
        hits.rows[:, : places.shape[1]] = self._rows[places]
        hits.scores[:, : places.shape[1]] = scores
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
