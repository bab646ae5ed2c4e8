"""Nearest neighbours over a pool that changes while it is searched: segments that never change, swapped whole."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udr.artifacts import read_json, write_atomically
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from udr.filters import Codebook, Condition
from udr.segments import Segment, exact_segment, import_faiss, merged, read_segment, with_graph, write_segment
from udr.types import FloatArray, Hits, IntArray

__all__ = ["LiveIndex", "load_live_index"]

_SPARE = 16  # proposals beyond k, for float32 sums order near ties by chance
_MERGED = 1 << 16  # rows of a segment that an `add` may still merge: 100 MB of 384 numbers are copied in 50 ms
_DEAD = 0.2  # of a segment's rows before it is written anew
_GRAPH = 100_000  # rows without a graph before they get one: comparing each takes 6 ms by then
_MANIFEST = "manifest.json"


class _File(NamedTuple):
    """Where a segment is on disk."""

    of: weakref.ref[IntArray]  # its ids
    name: str
    hash: str


class LiveIndex:
    """Vectors under int64 ids and their metadata, searched by any number of threads while others add and remove.

    A search reads one tuple of segments and so sees the pool as it was at one moment. An `add` makes a segment;
    small ones are merged so that their number stays logarithmic (as in a log-structured merge tree). FAISS proposes by
    inner products in float32; the proposals are scored again in float64 and ordered by (score, id), so a query gets
    the same answer alone, in a batch and after the index was built anew. That holds until `improve` has made graphs of
    many rows, which find `udr.segments.RECALL` of the nearest in a small part of the time.
    """

    def __init__(self, dim: int, fingerprint: str) -> None:
        if dim < 1:
            raise ConfigError(f"dim of an index must be at least 1, got {dim}")
        self.dim = dim
        self.fingerprint = fingerprint
        self._codebook = Codebook()
        self._segments: tuple[Segment, ...] = ()
        self._writing = threading.Lock()
        self._hopeless = 0  # rows of the largest segment of which no graph is good enough
        self._files: dict[int, _File] = {}  # of segments that are on disk, by the identity of their ids

    def __len__(self) -> int:
        return sum(len(s.ids) - s.dead for s in self._segments)

    @property
    def segments(self) -> int:
        """How many a search has to visit."""
        return len(self._segments)

    @property
    def in_graphs(self) -> int:
        """Rows that are found by a graph."""
        return sum(len(s.ids) - s.dead for s in self._segments if s.graph is not None)

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
            if (new[1:] == new[:-1]).any() or any(len(s.places(new)[0]) for s in self._segments):
                raise DataError("ids must be new to the index and differ")
            columns = self._codebook.encode([metadata[i] for i in order])
            segments = [*self._segments, exact_segment(new, rows, columns)]
            while len(segments) > 1 and _may_merge(segments[-2], segments[-1]):
                segments[-2:] = merged(segments[-2:])
            self._segments = tuple(segments)

    def remove(self, ids: ArrayLike) -> int:
        """Forget these ids and say how many there were; unknown ones are passed over."""
        gone = np.unique(np.asarray(ids, dtype=np.int64))
        removed = 0
        with self._writing:
            segments: list[Segment] = []
            for segment in self._segments:
                segment, n = _without(segment, gone)
                removed += n
                worn = segment.graph is None and segment.dead > _DEAD * len(segment.ids)  # `improve` sees to graphs
                segments += merged([segment]) if worn else [segment]
            self._segments = tuple(segments)
        return removed

    def improve(self, threads: int = 1) -> bool:
        """Make one graph of the rows that have none, if they are many; searches and changes go on meanwhile.

        Graphs no larger than twice those rows are taken in, so that the number of graphs stays logarithmic.

        Args:
            threads: that build it.

        Returns:
            True if the index was changed.
        """
        before = self._segments
        taken = [s for s in before if s.graph is None or s.dead > _DEAD * len(s.ids)]
        worn = any(s.graph is not None for s in taken)
        if not worn and sum(len(s.ids) for s in taken) < max(_GRAPH, 2 * self._hopeless):
            return False
        others = [s for s in before if s.graph is not None and not any(s is t for t in taken)]
        for graph in sorted(others, key=lambda s: len(s.ids)):
            if len(graph.ids) > 2 * sum(len(s.ids) for s in taken):
                break
            taken.append(graph)
        whole = merged(taken)
        made = whole[0] if whole else None
        if made is not None and len(made.ids) >= _GRAPH:
            made = with_graph(made, threads)
            self._hopeless = 0 if made.graph is not None else len(made.ids)
        with self._writing:
            now = np.concatenate([s.ids[s.alive] for s in self._segments]) if self._segments else np.empty(0, np.int64)
            segments = [made._replace(alive=np.isin(made.ids, now))] if made is not None else []
            for segment in self._segments:
                if any(segment.ids is t.ids for t in taken):
                    continue
                if made is not None:  # rows of `made` that were merged or written anew meanwhile
                    segment, _ = _without(segment, made.ids)
                segments += merged([segment]) if segment.dead > _DEAD * len(segment.ids) else [segment]
            self._segments = tuple(segments)
        return True

    def search(
        self,
        vectors: FloatArray,
        k: int,
        fingerprint: str,
        conditions: Sequence[Condition] = (),
        segments: Sequence[Segment] | None = None,
    ) -> Hits:
        """Find the k largest inner products among the rows that meet the conditions.

        Args:
            vectors: (n, dim) of the queries.
            k: at least 1; places without a result hold id −1 and score −inf.
            fingerprint: of the encoder that made them.
            conditions: on the metadata; all must hold.
            segments: what `current` gave before; None: as they are now.

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
        import_faiss().omp_set_num_threads(1)  # of this thread: two threads on busy cores wait for each other
        admits = self._codebook.prepare(conditions) if conditions else None
        ids, scores = [np.full((len(queries), 1), -1, np.int64)], [np.full((len(queries), 1), -np.inf)]
        for segment in self._segments if segments is None else segments:
            mask = segment.alive if admits is None else segment.alive & admits(segment.columns, len(segment.ids))
            found = segment.search(queries, k + _SPARE, mask)
            if found is not None:
                ids.append(found[0])
                scores.append(found[1])
        return _best(np.hstack(ids), np.hstack(scores), k)

    def holds(self, ids: ArrayLike, segments: Sequence[Segment] | None = None) -> NDArray[np.bool_]:
        """Tell of each id (m,) whether it is there, among the `segments` that `current` gave before or now."""
        wanted = np.asarray(ids, dtype=np.int64)
        held = np.zeros(len(wanted), dtype=np.bool_)
        for segment in self._segments if segments is None else segments:
            held[segment.places(wanted)[1]] = True
        return held

    def vectors(self, ids: ArrayLike, segments: Sequence[Segment] | None = None) -> FloatArray:
        """Give the stored vectors (m, dim) of these ids, in their order.

        Args:
            ids: (m,).
            segments: what `current` gave before; None: as they are now.

        Raises:
            DataError: an id that the index does not hold (any more).
        """
        wanted = np.asarray(ids, dtype=np.int64)
        found = np.empty((len(wanted), self.dim), dtype=np.float32)
        missing = np.ones(len(wanted), dtype=np.bool_)
        for segment in self._segments if segments is None else segments:
            places, which = segment.places(wanted)
            if len(places):
                found[which] = segment.store.reconstruct_batch(places)
                missing[which] = False
        if missing.any():
            raise DataError(f"no such id in the index: {wanted[missing][0]}")
        return found

    def save(self, folder: Path, state: Mapping[str, Any], segments: Sequence[Segment] | None = None) -> None:
        """Write the index to a folder; segments that are there already are not written again.

        The manifest is written last and names every file with its hash, so a folder holds a whole index or none.

        Args:
            folder: made if need be; what else it holds of an index is removed.
            state: what the index stands for, given back by `load_live_index`.
            segments: as they were when `state` was; None: as they are now.

        Raises:
            ArtifactError: the disk is full or the folder cannot be written.
        """
        noted, files = [], {}
        for segment in self._segments if segments is None else segments:
            file = self._files.get(id(segment.ids))
            if file is None or file.of() is not segment.ids or not (folder / f"{file.name}.npz").is_file():
                name = f"segment-{uuid.uuid4().hex}"
                file = _File(weakref.ref(segment.ids), name, write_segment(segment, folder / name))
            files[id(segment.ids)] = file
            marks = np.packbits(segment.alive).tobytes().hex()
            rows = {"rows": len(segment.ids), "width": segment.width, "alive": marks}
            noted.append({"name": file.name, "hash": file.hash, **rows})
        with self._writing:
            codes = self._codebook.codes()
        content = {
            "dim": self.dim,
            "fingerprint": self.fingerprint,
            "faiss": import_faiss().__version__,
            "codes": codes,
            "segments": noted,
            "state": dict(state),
        }
        manifest = {**content, "sha256": _hash(content)}
        write_atomically(folder / _MANIFEST, json.dumps(manifest).encode())
        self._files = files
        _remove_others(folder, {file.name for file in files.values()})

    def current(self) -> tuple[Segment, ...]:
        """The segments at this moment: what is found and read in them agrees, whatever comes and goes meanwhile."""
        return self._segments


def load_live_index(folder: Path) -> tuple[LiveIndex, dict[str, Any]]:
    """Open what `LiveIndex.save` wrote, and the state that it stood for.

    Raises:
        ArtifactError: absent, half-written, damaged, or of another version of FAISS.
    """
    manifest = read_json(folder / _MANIFEST)
    if manifest.pop("sha256", None) != _hash(manifest):
        raise ArtifactError(f"{folder / _MANIFEST}: its hash is not the one that it states")
    try:
        if manifest["faiss"] != import_faiss().__version__:
            raise ArtifactError(f"{folder}: written by FAISS {manifest['faiss']}")
        index = LiveIndex(manifest["dim"], manifest["fingerprint"])
        index._codebook = Codebook(manifest["codes"])
        segments = []
        for noted in manifest["segments"]:
            marks = np.frombuffer(bytes.fromhex(noted["alive"]), dtype=np.uint8)
            alive = np.unpackbits(marks, count=noted["rows"]).astype(np.bool_)
            segment = read_segment(folder / Path(noted["name"]).name, noted["hash"], alive, noted["width"])
            if segment.store.d != index.dim:
                raise ArtifactError(f"{folder}: vectors of {segment.store.d} numbers, not {index.dim}")
            segments.append(segment)
            index._files[id(segment.ids)] = _File(weakref.ref(segment.ids), noted["name"], noted["hash"])
        index._segments = tuple(segments)
        return index, dict(manifest["state"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{folder}: damaged ({type(error).__name__})") from None


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    kept = {f"{name}{suffix}" for name in names for suffix in (".faiss", ".npz")}
    for path in folder.glob("segment-*"):
        if path.name not in kept:
            with suppress(OSError):
                os.unlink(path)


def _may_merge(older: Segment, newer: Segment) -> bool:
    small = len(older.ids) <= 2 * len(newer.ids) and len(older.ids) + len(newer.ids) <= _MERGED
    return small and older.graph is None


def _without(segment: Segment, ids: IntArray) -> tuple[Segment, int]:
    """The segment without these ids (ascending), and how many of them it had."""
    places, _ = segment.places(ids)
    if not len(places):
        return segment, 0
    alive = segment.alive.copy()
    alive[places] = False
    return segment._replace(alive=alive), len(places)


def _best(ids: IntArray, scores: NDArray[np.float64], k: int) -> Hits:
    """Order (n, width) by score, then id, and keep k; too narrow a result is filled up with −1."""
    exact = scores.astype(np.float32)
    best = np.lexsort((ids, -exact), axis=-1)[:, :k]
    hits = Hits(np.full((len(ids), k), -1, np.int64), np.full((len(ids), k), -np.inf, np.float32))
    hits.rows[:, : best.shape[1]] = np.take_along_axis(ids, best, axis=1)
    hits.scores[:, : best.shape[1]] = np.take_along_axis(exact, best, axis=1)
    return hits
