"""Vectors for what an encoding of a pool lacks, whatever cannot be encoded left out and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import structlog

from serving.batching import EncodingWorker
from serving.pool_index import Encoding
from serving.sql.rows import Stored
from serving.sql.store import Store
from udr.errors import DataError, UDRError, is_out_of_memory
from udr.types import FloatArray

__all__ = ["Encoded", "Tell", "encode_stored", "fill"]

_log = structlog.get_logger("udr.serving")
_AT_ONCE = 256  # demonstrations encoded for one transaction
Tell = Callable[[int, Sequence[str], int], None]
"""Hears how many more demonstrations are encoded, of each that cannot be, why, and how many were not read to their end;
may raise to stop."""


class Encoded(NamedTuple):
    """Rows and their vectors (m, d), and of the rows that cannot be encoded, why."""

    rows: list[int]
    vectors: FloatArray
    unread: dict[int, str]


def fill(store: Store, worker: EncodingWorker, encoding: Encoding, tell: Tell | None) -> dict[int, str]:
    """Encode what has no vector under an encoding yet; give the rows that cannot be encoded, and why.

    Raises:
        RetrieverChanged: the encoding was dropped.
        NotFoundError: the pool was deleted.
    """
    pool_id, encoding_id = encoding.row.pool_id, encoding.row.id
    after, found = 0, False
    unread: dict[int, str] = {}
    while True:
        missing = store.unencoded(pool_id, encoding_id, after, _AT_ONCE)
        if not missing:
            if not found:
                return unread
            after, found = 0, False  # once more from the beginning, for what came meanwhile
            continue
        after = missing[-1].row
        if fresh := [s for s in missing if s.row not in unread]:
            rows, vectors, failed = encode_stored(worker, encoding, fresh)
            store.add_vectors(pool_id, encoding_id, rows, vectors)
            unread |= failed
            found = True
            if tell:
                cut = encoding.encoder.tokens_cut([s.demonstration for s in fresh if s.row not in failed])
                tell(len(rows), list(failed.values()), sum(n > 0 for n in cut))


def encode_stored(worker: EncodingWorker, encoding: Encoding, stored: Sequence[Stored]) -> Encoded:
    """Vectors of demonstrations, without those that cannot be encoded; these are found by halving."""
    rows, vectors, failed = list[int](), list[FloatArray](), dict[int, Exception]()
    waiting = [stored]
    while waiting:
        some = waiting.pop()
        try:
            found = worker.encode_demonstrations(encoding.encoder, [s.demonstration for s in some])
        except Exception as error:  # encoders and what they decode with raise many types
            if is_out_of_memory(error) or (isinstance(error, UDRError) and not isinstance(error, DataError)):
                raise  # it is not the demonstration's fault
            if len(some) > 1:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
            else:
                failed[some[0].row] = error
        else:
            rows += [s.row for s in some]
            vectors.append(found)
    if strange := next((error for error in failed.values() if not isinstance(error, UDRError)), None):
        _log.warning("encoding", retriever=encoding.row.retriever, exc_info=strange)  # one is enough
    unread = {s.row: _why(encoding, s, failed[s.row]) for s in stored if s.row in failed}
    return Encoded(rows, np.vstack([np.empty((0, encoding.encoder.dim), np.float32), *vectors]), unread)


def _why(encoding: Encoding, stored: Stored, error: Exception) -> str:
    reason = str(error) if isinstance(error, UDRError) else f"{type(error).__name__}: {error}"
    what = f"id {stored.demonstration.id!r}: {encoding.row.retriever!r} cannot encode it"
    return f"{what} ({' '.join(reason.split())})"
