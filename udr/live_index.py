"""Nearest neighbours over a pool that changes while it is searched: FAISS segments that never change, swapped whole."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udr.errors import ConfigError, DataError, FingerprintMismatch, MissingDependencyError
from udr.filters import Codebook, Columns, Condition
from udr.types import FloatArray, Hits, IntArray

__all__ = ["LiveIndex"]

_SPARE = 16  # proposals beyond k, for float32 sums order near ties by chance
_MERGED = 1 << 16  # rows of a segment that an `add` may still merge: 100 MB of 384 numbers are copied in 50 ms
_DEAD = 0.2  # of a segment's rows before it is written anew


class _Segment(NamedTuple):
    """Rows that were added together; nothing in it is ever changed."""

    ids: IntArray  # (m,) ascending
    store: Any  # faiss.IndexFlatIP of the vectors (m, d)
    alive: NDArray[np.bool_]  # (m,)
    columns: Columns

    @property
    def dead(self) -> int:
        return len(self.ids) - int(np.count_nonzero(self.alive))


class LiveIndex:
    """Vectors under int64 ids and their metadata, searched by any number of threads while others add and remove.

    A search reads one tuple of segments and so sees the pool as it was at one moment. An `add` makes a segment;
    small ones are merged so that their number stays logarithmic (as in a log-structured merge tree). FAISS proposes by
    exact inner products in float32; the proposals are scored again in float64 and ordered by (score, id), so a
    query gets the same answer alone, in a batch and after the index was built anew.
    """

    def __init__(self, dim: int, fingerprint: str) -> None:
        if dim < 1:
            raise ConfigError(f"dim of an index must be at least 1, got {dim}")
        self.dim = dim
        self.fingerprint = fingerprint
        self._codebook = Codebook()
        self._segments: tuple[_Segment, ...] = ()
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return sum(len(s.ids) - s.dead for s in self._segments)

    @property
    def segments(self) -> int:
        """How many a search has to visit."""
        return len(self._segments)

    def add(self, ids: ArrayLike, vectors: ArrayLike, metadata: Sequence[Mapping[str, str]]) -> None:
        """Store vectors (m, dim) under new ids (m,) with their metadata (m); on an error nothing is stored.

        Raises:
            ConfigError: shapes do not fit.
            DataError: an id that is there already or comes twice; a number that is not finite.
        """
        new, rows = np.asarray(ids, dtype=np.int64), np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.shape != (len(new), self.dim) or len(metadata) != len(new):
            raise ConfigError(
                f"{len(new)} ids, vectors {rows.shape} and {len(metadata)} metadata; expected (m, {self.dim})"
            )
        if not np.isfinite(rows).all():
            raise DataError("vectors hold NaN or infinity")
        if not len(new):
            return
        order = np.argsort(new, kind="stable")
        new, rows = new[order], rows[order]
        with self._writing:
            if (new[1:] == new[:-1]).any() or any(len(_places(s, new)[0]) for s in self._segments):
                raise DataError("ids must be new to the index and differ")
            columns = self._codebook.encode([metadata[i] for i in order])
            segments = [*self._segments, _Segment(new, self._flat(rows), np.ones(len(new), np.bool_), columns)]
            while len(segments) > 1 and _may_merge(segments[-2], segments[-1]):
                segments[-2:] = self._merge(segments[-2:])
            self._segments = tuple(segments)

    def remove(self, ids: ArrayLike) -> int:
        """Forget these ids and say how many there were; unknown ones are passed over."""
        gone = np.unique(np.asarray(ids, dtype=np.int64))
        removed = 0
        with self._writing:
            segments: list[_Segment] = []
            for segment in self._segments:
                places, _ = _places(segment, gone)
                if len(places):
                    alive = segment.alive.copy()
                    alive[places] = False
                    segment = segment._replace(alive=alive)
                    removed += len(places)
                segments += self._merge([segment]) if segment.dead > _DEAD * len(segment.ids) else [segment]
            self._segments = tuple(segments)
        return removed

    def search(self, vectors: FloatArray, k: int, fingerprint: str, conditions: Sequence[Condition] = ()) -> Hits:
        """Find the k largest inner products among the rows that meet the conditions.

        Args:
            vectors: (n, dim) of the queries.
            k: at least 1; places without a result hold id −1 and score −inf.
            fingerprint: of the encoder that made them.
            conditions: on the metadata; all must hold.

        Returns:
            Hits (n, k), scores descending, equal ones by ascending id.

        Raises:
            FingerprintMismatch: another encoder's vectors.
        """
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(f"the index holds vectors of {self.fingerprint!r}, these are of {fingerprint!r}")
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim or k < 1:
            raise ConfigError(f"expected vectors (n, {self.dim}) and k ≥ 1, got {queries.shape} and {k}")
        _faiss().omp_set_num_threads(1)  # of this thread: two threads on busy cores wait for each other
        ids, scores = [np.full((len(queries), 1), -1, np.int64)], [np.full((len(queries), 1), -np.inf)]
        for segment in self._segments:
            found = self._search_segment(segment, queries, k, conditions)
            if found is not None:
                ids.append(found[0])
                scores.append(found[1])
        return _best(np.hstack(ids), np.hstack(scores), k)

    def vectors(self, ids: ArrayLike) -> FloatArray:
        """Give the stored vectors (m, dim) of these ids, in their order.

        Raises:
            DataError: an id that the index does not hold (any more).
        """
        wanted = np.asarray(ids, dtype=np.int64)
        found = np.empty((len(wanted), self.dim), dtype=np.float32)
        missing = np.ones(len(wanted), dtype=np.bool_)
        for segment in self._segments:
            places, which = _places(segment, wanted)
            if len(places):
                found[which] = segment.store.reconstruct_batch(places)
                missing[which] = False
        if missing.any():
            raise DataError(f"no such id in the index: {wanted[missing][0]}")
        return found

    def _search_segment(
        self, segment: _Segment, queries: FloatArray, k: int, conditions: Sequence[Condition]
    ) -> tuple[IntArray, NDArray[np.float64]] | None:
        """Ids and exact scores (n, ≤ k + spare) of one segment; −1 and −inf where too few rows qualify."""
        mask = segment.alive
        if conditions:
            mask = mask & self._codebook.admitted(conditions, segment.columns, len(segment.ids))
        admitted = int(np.count_nonzero(mask))
        if not admitted:
            return None
        faiss, params = _faiss(), None
        if admitted < len(mask):
            bits = np.packbits(mask, bitorder="little")
            params = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        _, places = segment.store.search(queries, min(k + _SPARE, admitted), params=params)
        stored = segment.store.reconstruct_batch(np.maximum(places, 0).ravel()).astype(np.float64)
        exact = (stored.reshape(*places.shape, self.dim) * queries[:, None, :]).sum(axis=2)
        missing = places < 0
        return np.where(missing, -1, segment.ids[places]), np.where(missing, -np.inf, exact)

    def _flat(self, rows: FloatArray) -> Any:
        store = _faiss().IndexFlatIP(self.dim)
        store.add(rows)
        return store

    def _merge(self, segments: Sequence[_Segment]) -> list[_Segment]:
        """One segment of all living rows, or none."""
        ids = np.concatenate([s.ids[s.alive] for s in segments])
        if not len(ids):
            return []
        order = np.argsort(ids, kind="stable")
        rows = np.concatenate([s.store.reconstruct_n(0, len(s.ids))[s.alive] for s in segments])
        columns: Columns = {}
        for key in {key for s in segments for key in s.columns}:
            parts = [s.columns.get(key, np.full(len(s.ids), -1, np.int32))[s.alive] for s in segments]
            columns[key] = np.concatenate(parts)[order]
        return [_Segment(ids[order], self._flat(rows[order]), np.ones(len(ids), np.bool_), columns)]


def _may_merge(older: _Segment, newer: _Segment) -> bool:
    return len(older.ids) <= 2 * len(newer.ids) and len(older.ids) + len(newer.ids) <= _MERGED


def _places(segment: _Segment, ids: IntArray) -> tuple[IntArray, IntArray]:
    """Where living rows of these ids stand in the segment, and which of `ids` they are."""
    places = np.searchsorted(segment.ids, ids)
    inside = np.minimum(places, len(segment.ids) - 1)
    which = np.flatnonzero((segment.ids[inside] == ids) & segment.alive[inside])
    return inside[which], which


def _best(ids: IntArray, scores: NDArray[np.float64], k: int) -> Hits:
    """Order (n, width) by score, then id, and keep k; too narrow a result is filled up with −1."""
    exact = scores.astype(np.float32)
    best = np.lexsort((ids, -exact), axis=-1)[:, :k]
    hits = Hits(np.full((len(ids), k), -1, np.int64), np.full((len(ids), k), -np.inf, np.float32))
    hits.rows[:, : best.shape[1]] = np.take_along_axis(ids, best, axis=1)
    hits.scores[:, : best.shape[1]] = np.take_along_axis(exact, best, axis=1)
    return hits


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError:
        raise MissingDependencyError("faiss-cpu", "train") from None
