"""Exact nearest neighbours by inner product: FAISS, and nothing else of ours imports it."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch, IndexNotReady, MissingDependencyError
from udr.types import FloatArray, Hits, IntArray

__all__ = ["FlatIndex", "load_index"]

_SPARE = 16  # places asked of FAISS beyond k, so that ties at the k-th place are mostly seen in one search
_CELLS = 1 << 22  # numbers scored at a time, some 100 MB at most
_ROWS = 1 << 16  # vectors read at a time
_LARGEST = 1e15  # beyond it float32 sums of products may overflow


class FlatIndex:
    """Vectors under int64 ids, compared one by one with each query.

    FAISS (Douze et al. 2024, The Faiss library, arXiv 2401.08281) proposes, with IndexIDMap2 over IndexFlatIP. Its
    float32 sums depend on the batch a query comes in and on where a vector is stored, so the proposals are scored again
    in float64 and ordered by (score, id): a query finds the same rows and scores alone or in a batch, after a reload,
    and whatever the order of adding was. Not locked: while one thread adds or removes, no other may search.
    """

    def __init__(self, dim: int, fingerprint: str) -> None:
        if dim < 1:
            raise ConfigError(f"dim of an index must be at least 1, got {dim}")
        self._dim = dim
        self._fingerprint = fingerprint
        faiss = _faiss()
        self._store: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        self._ids: set[int] = set()
        self._longest = 0.0  # no stored vector is longer

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """The encoder whose vectors these are."""
        return self._fingerprint

    @property
    def ids(self) -> IntArray:
        """All ids (len,), ascending."""
        return np.array(sorted(self._ids), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: IntArray, vectors: FloatArray, fingerprint: str) -> None:
        """Store vectors under new ids; on an error nothing is stored.

        Args:
            ids: (m,) not negative, each new.
            vectors: (m, dim).
            fingerprint: of the encoder that made them.

        Raises:
            FingerprintMismatch: another encoder's vectors.
            ConfigError: shapes do not fit.
            DataError: an id twice, known already or negative; NaN, infinity or a number beyond 1e15 in a vector.
        """
        self._check_fingerprint(fingerprint)
        rows, new = self._check_vectors(vectors), _check_ids(ids)
        if len(new) != len(rows):
            raise ConfigError(f"{len(new)} ids for {len(rows)} vectors")
        names = set(new.tolist())
        if len(names) < len(new) or names & self._ids:
            again = sorted(names & self._ids) or sorted(_repeated(new))
            raise DataError(f"ids must be new to the index and differ: {', '.join(map(str, again[:5]))}")
        if len(new) and new.min() < 0:
            raise DataError(f"id {new.min()} is negative; -1 marks a place without a result")
        if len(new):
            self._store.add_with_ids(rows, new)
            self._ids |= names
            self._longest = max(self._longest, float(np.linalg.norm(rows, axis=1).max()))

    def remove(self, ids: IntArray) -> int:
        """Forget the vectors of these ids and say how many there were; unknown ids are passed over."""
        known = self._ids.intersection(_check_ids(ids).tolist())
        if known:
            self._store.remove_ids(np.array(sorted(known), dtype=np.int64))
            self._ids -= known
        return len(known)

    def search(self, vectors: FloatArray, k: int, fingerprint: str) -> Hits:
        """Find the k largest inner products for each query; equal scores stand in ascending order of id.

        Args:
            vectors: (n, dim) of the queries.
            k: at least 1; places beyond the size of the index hold id −1 and score −inf.
            fingerprint: of the encoder that made them.

        Returns:
            Hits (n, k), scores descending.

        Raises:
            FingerprintMismatch: another encoder's vectors.
            ConfigError: wrong shape, or k below 1.
            DataError: NaN, infinity or a number beyond 1e15 in a vector.
            IndexNotReady: the index is empty.
        """
        self._check_fingerprint(fingerprint)
        queries = self._check_vectors(vectors)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        if not len(self):
            raise IndexNotReady("the index is empty; add demonstrations first")
        hits = Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        width = min(k, len(self))
        if len(queries):
            hits.rows[:, :width], hits.scores[:, :width] = self._nearest(queries, width)
        return hits

    def vectors(self, ids: IntArray) -> FloatArray:
        """Give the stored vectors (m, dim) of these ids, in their order.

        Raises:
            DataError: an id that the index does not hold.
        """
        wanted = _check_ids(ids)
        unknown = set(wanted.tolist()) - self._ids
        if unknown:
            raise DataError(f"no such id in the index: {', '.join(map(str, sorted(unknown)[:5]))}")
        if not len(wanted):
            return np.empty((0, self._dim), dtype=np.float32)
        return np.asarray(self._store.reconstruct_batch(wanted), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write index.faiss and manifest.json into the folder `path`, which is made if need be.

        Both are written and synced beside their places before either is moved there, so what is read back is either a
        whole index or refused: if the machine stops between the two moves, the hash in the manifest does not fit.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        temporary = path / "index.faiss.tmp", path / "manifest.json.tmp"
        try:
            path.mkdir(parents=True, exist_ok=True)
            _faiss().write_index(self._store, str(temporary[0]))
            manifest = json.dumps(self._manifest(_sha256(temporary[0])), indent=2)
            temporary[1].write_text(manifest + "\n", encoding="utf-8")
            for file in temporary:
                _sync(file)
            for file in temporary:
                os.replace(file, file.with_suffix(""))
            _sync(path)
        except (OSError, RuntimeError) as error:  # FAISS reports a full disk as RuntimeError
            raise ArtifactError(f"{path}: the index cannot be written ({error})") from None

    def _manifest(self, sha256: str) -> dict[str, object]:
        return {
            "dim": self._dim,
            "fingerprint": self._fingerprint,
            "count": len(self),
            "sha256": sha256,
            "faiss": str(_faiss().__version__),
        }

    def _adopt(self, store: Any) -> None:
        """Take over what was read from a file."""
        faiss = _faiss()
        flat = faiss.downcast_index(store.index)
        self._store = store
        self._ids = set(faiss.vector_to_array(store.id_map).tolist())
        for start in range(0, store.ntotal, _ROWS):
            rows = flat.reconstruct_n(start, min(_ROWS, store.ntotal - start))
            self._longest = max(self._longest, float(np.linalg.norm(rows, axis=1).max()))

    def _nearest(self, queries: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """Find ids and scores (n, k), k no larger than the index.

        FAISS gives some more than k; where the last of those is not below the k-th by more than rounding, another may
        belong among the first k, and every vector that comes near the k-th is scored again.
        """
        proposed, ids = self._store.search(queries, min(k + _SPARE, len(self)))  # (n, width)
        limit = proposed[:, k - 1] - 2 * self._rounding(queries)
        rows, scores = self._rank(queries, ids, k)
        if ids.shape[1] < len(self):
            for i in np.flatnonzero(proposed[:, -1] >= limit):
                _, _, near = self._store.range_search(queries[i : i + 1], float(limit[i]))
                near = np.union1d(near, ids[i])[None]
                rows[i : i + 1], scores[i : i + 1] = self._rank(queries[i : i + 1], near, k)
        return rows, scores

    def _rounding(self, queries: FloatArray) -> NDArray[np.float64]:
        """Bound (n,) how far a float32 inner product with any stored vector is off.

        4 · √dim · u · |q| · |v| with the unit roundoff u = 6e-8: errors of single steps cancel like a random walk
        (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis); dim · u would be certain, and
        for BERT's crowded vectors so wide that everything is near. The last term keeps a zero query's ties.
        """
        relative = 2 * self._dim**0.5 * float(np.finfo(np.float32).eps)
        bound: NDArray[np.float64] = relative * self._longest * np.linalg.norm(queries, axis=1).astype(np.float64)
        return bound + 1e-30

    def _rank(self, queries: FloatArray, ids: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """Order each query's proposals (n, width) by exact score, then id, and keep k."""
        scores = self._inner_products(queries, ids)
        best = np.lexsort((ids, -scores), axis=-1)[:, :k]
        return np.take_along_axis(ids, best, axis=1), np.take_along_axis(scores, best, axis=1)

    def _inner_products(self, queries: FloatArray, ids: IntArray) -> FloatArray:
        """Score each query (n, dim) with its proposals (n, width) in float64, rounded to float32 at the end."""
        owners = np.repeat(np.arange(len(queries)), ids.shape[1])
        flat = ids.ravel()
        scores = np.empty(len(flat), dtype=np.float32)
        step = max(1, _CELLS // self._dim)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            stored = self._store.reconstruct_batch(flat[part]).astype(np.float64)
            # Not einsum or matmul: their order of summation changes with the shape, that of sum(axis=1) does not.
            scores[part] = (stored * queries[owners[part]]).sum(axis=1)
        return scores.reshape(ids.shape)

    def _check_fingerprint(self, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise FingerprintMismatch(
                f"the index holds vectors of {self._fingerprint!r}, these are of {fingerprint!r}; "
                "use the encoder that built the index, or build it again"
            )

    def _check_vectors(self, vectors: ArrayLike) -> FloatArray:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity and is refused below
            rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._dim:
            raise ConfigError(f"vectors must have shape (n, {self._dim}), got {np.shape(vectors)}")
        if not (np.abs(rows) <= _LARGEST).all():  # false for NaN too
            raise DataError(f"vectors hold NaN, infinity or a number beyond {_LARGEST:g}")
        return rows


def load_index(path: Path) -> FlatIndex:
    """Read an index that `FlatIndex.save` wrote.

    Raises:
        ArtifactError: a file is absent, is not what the manifest says, or cannot be read.
    """
    faiss = _faiss()
    manifest, file = _read_manifest(path / "manifest.json"), path / "index.faiss"
    try:
        if _sha256(file) != manifest["sha256"]:
            raise ArtifactError(f"{file}: its hash is not the one in manifest.json; save the index again")
        store = faiss.read_index(str(file))
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error})") from None
    if not isinstance(store, faiss.IndexIDMap2) or (store.d, store.ntotal) != (manifest["dim"], manifest["count"]):
        raise ArtifactError(f"{file}: is not the index that manifest.json describes")
    index = FlatIndex(manifest["dim"], manifest["fingerprint"])
    index._adopt(store)
    return index


def _read_manifest(path: Path) -> dict[str, Any]:
    kinds = {"dim": int, "fingerprint": str, "count": int, "sha256": str}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from None
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(key), kind) for key, kind in kinds.items()):
        raise ArtifactError(f"{path}: expected {', '.join(kinds)}")
    return manifest


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError:
        raise MissingDependencyError("faiss-cpu", "train") from None


def _check_ids(ids: ArrayLike) -> IntArray:
    array = np.asarray(ids)
    if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
        raise ConfigError(f"ids must be integers of shape (m,), got {array.dtype} of shape {array.shape}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _repeated(ids: IntArray) -> NDArray[np.int64]:
    values, counts = np.unique(ids, return_counts=True)
    return values[counts > 1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
