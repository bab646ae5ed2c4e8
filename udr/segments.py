"""Pieces of an index that never change: vectors, an optional graph over them, and what filters read of each row."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udr.artifacts import replacing, write_atomically
from udr.errors import ArtifactError, MissingDependencyError
from udr.filters import Columns
from udr.types import FloatArray, IntArray

__all__ = [
    "RECALL",
    "Segment",
    "exact_segment",
    "import_faiss",
    "merged",
    "read_segment",
    "with_graph",
    "write_segment",
]

RECALL = 0.98  # of the ten nearest that a graph must find of those that are there, measured when it is built
_LINKS = 32  # of a row in the graph
_CONSTRUCTION = 80  # rows looked at to find a new row's links
_WIDTHS = (32, 64, 128, 256, 512)  # rows looked at by a search, tried in turn
_PROBES = 64  # stored rows that are searched for to measure the recall
_FEW = 0.1  # share of the rows below which a filter is answered by looking at each that it admits


class Segment(NamedTuple):
    """Rows that were added together; nothing in it is ever changed."""

    ids: IntArray  # (m,) ascending
    store: Any  # faiss.IndexFlatIP of the vectors (m, d)
    alive: NDArray[np.bool_]  # (m,)
    columns: Columns
    graph: Any = None  # faiss.IndexHNSWFlat over the same vectors
    width: int = 0  # of a search in the graph that reaches RECALL

    @property
    def dead(self) -> int:
        return len(self.ids) - int(np.count_nonzero(self.alive))

    def places(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        """Where living rows of these ids stand in the segment, and which of `ids` they are."""
        places = np.searchsorted(self.ids, ids)
        inside = np.minimum(places, len(self.ids) - 1)
        which = np.flatnonzero((self.ids[inside] == ids) & self.alive[inside])
        return inside[which], which

    def search(
        self, queries: FloatArray, k: int, mask: NDArray[np.bool_]
    ) -> tuple[IntArray, NDArray[np.float64]] | None:
        """The nearest of the rows that the mask admits.

        Args:
            queries: (n, d).
            k: how many to propose.
            mask: (m,).

        Returns:
            Ids and inner products (n, ≤ k), summed in float64 whatever the layout; −1 and −inf where there are too
            few; None if the mask admits nothing.
        """
        admitted = int(np.count_nonzero(mask))
        if not admitted:
            return None
        faiss, k = import_faiss(), min(k, admitted)
        selector = None
        if admitted < len(mask):
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        exact = faiss.SearchParameters(sel=selector) if selector is not None else None
        if self.graph is not None and admitted >= _FEW * len(mask):
            near = faiss.SearchParametersHNSW(efSearch=max(self.width, 2 * k), sel=selector)
            _, places = self.graph.search(queries, k, params=near)
            lacking = np.flatnonzero((places < 0).any(axis=1))  # a graph may lose its way among rows not admitted
            if len(lacking):
                _, places[lacking] = self.store.search(queries[lacking], k, params=exact)
        else:
            _, places = self.store.search(queries, k, params=exact)
        stored = self.store.reconstruct_batch(np.maximum(places, 0).ravel()).astype(np.float64)
        products = (stored.reshape(*places.shape, -1) * queries[:, None, :]).sum(axis=2)
        missing = places < 0
        return np.where(missing, -1, self.ids[places]), np.where(missing, -np.inf, products)


def exact_segment(ids: IntArray, rows: FloatArray, columns: Columns) -> Segment:
    """A segment of rows (m, d) by ascending ids, searched by comparing each."""
    store = import_faiss().IndexFlatIP(rows.shape[1])
    store.add(rows)
    return Segment(ids, store, np.ones(len(ids), np.bool_), columns)


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """One segment of all living rows, without a graph; none if no row lives."""
    ids = np.concatenate([s.ids[s.alive] for s in segments])
    if not len(ids):
        return []
    order = np.argsort(ids, kind="stable")
    rows = np.concatenate([s.store.reconstruct_n(0, len(s.ids))[s.alive] for s in segments])
    columns: Columns = {}
    for key in {key for s in segments for key in s.columns}:
        parts = [s.columns.get(key, np.full(len(s.ids), -1, np.int32))[s.alive] for s in segments]
        columns[key] = np.concatenate(parts)[order]
    return [exact_segment(ids[order], rows[order], columns)]


def with_graph(segment: Segment, threads: int = 1) -> Segment:
    """The same rows with a graph (HNSW: Malkov and Yashunin 2018), if one finds RECALL of the nearest; else as it was.

    The recall is measured on rows of the segment itself, and the search made wider until it suffices.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads)  # of this thread
    graph = faiss.IndexHNSWFlat(segment.store.d, _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _CONSTRUCTION
    graph.add(segment.store.reconstruct_n(0, segment.store.ntotal))
    store = faiss.downcast_index(graph.storage)
    made = segment._replace(store=store, graph=graph)
    probes = np.random.default_rng(0).choice(len(segment.ids), min(_PROBES, len(segment.ids)), replace=False)
    queries, k = segment.store.reconstruct_batch(np.sort(probes)), min(10, len(segment.ids))
    _, nearest = segment.store.search(queries, k)
    floors = (segment.store.reconstruct_batch(nearest[:, -1].copy()) * queries).sum(axis=1) - 1e-5
    for width in _WIDTHS:
        _, found = graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=width))
        rows = segment.store.reconstruct_batch(np.maximum(found, 0).ravel()).reshape(*found.shape, -1)
        # another row as near as the last is as good: copies are many in real pools
        good = ((rows * queries[:, None]).sum(axis=2) >= floors[:, None]) & (found >= 0)
        if good.mean() >= RECALL:
            return made._replace(width=width)
    return segment


def write_segment(segment: Segment, path: Path) -> str:
    """Write what never changes of a segment, everything but `alive`, to `path` + .faiss and .npz.

    Returns:
        The hash of both.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    faiss = import_faiss()
    with replacing(path.with_suffix(".faiss")) as temporary:
        try:
            faiss.write_index(segment.graph if segment.graph is not None else segment.store, str(temporary))
        except RuntimeError as error:
            raise ArtifactError(f"{path}: cannot be written ({str(error).splitlines()[-1]})") from None
    content = io.BytesIO()
    np.savez(content, ids=segment.ids, **{f"column {key}": codes for key, codes in segment.columns.items()})  # type: ignore[arg-type]
    write_atomically(path.with_suffix(".npz"), content.getvalue())
    return _hash(path)


def read_segment(path: Path, expected: str, alive: NDArray[np.bool_], width: int) -> Segment:
    """Read what `write_segment` wrote.

    Raises:
        ArtifactError: absent, damaged, or not the files that had this hash.
    """
    faiss = import_faiss()
    try:
        if _hash(path) != expected:
            raise ArtifactError(f"{path}: its hash is not the one that was noted")
        index = faiss.read_index(str(path.with_suffix(".faiss")))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            ids = arrays["ids"]
            columns = {key.removeprefix("column "): arrays[key] for key in arrays.files if key != "ids"}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if len(ids) != index.ntotal or len(alive) != len(ids):
        raise ArtifactError(f"{path}: {index.ntotal} vectors, {len(ids)} ids and {len(alive)} marks")
    if not width:
        return Segment(ids, index, alive, columns)
    store = faiss.downcast_index(index.storage)
    return Segment(ids, store, alive, columns, index, width)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for suffix in (".faiss", ".npz"):
        with path.with_suffix(suffix).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def import_faiss() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError:
        raise MissingDependencyError("faiss-cpu", "train") from None
