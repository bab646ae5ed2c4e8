"""LM scores on disk, shared by rounds and runs: nothing is scored twice."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udr.errors import ArtifactError, ScorerUnavailable
from udr.types import LMScorer, LogLikelihoods

__all__ = ["CachedScorer", "ScoreCache"]

OPENING = 30.0  # seconds to wait for another process that is opening the same file
LOOKUP_BATCH = 500  # SQLite's default limit of bound variables is higher on every build we meet


def score_key(fingerprint: str, context: str, continuation: str) -> bytes:
    """Identity of one score: LM and dtype (the fingerprint), and the rendered texts (which hold template, z, x, y)."""
    h = hashlib.blake2b(digest_size=16)
    for part in (fingerprint, context, continuation):
        raw = part.encode("utf-8", "surrogatepass")
        h.update(len(raw).to_bytes(8, "little") + raw)
    return h.digest()


class ScoreCache:
    """A SQLite table key → (nats, tokens).

    Several processes may read and write; a killed one loses nothing committed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._enter_wal_mode()
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL)"
                " WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise ArtifactError(f"{path}: the score cache cannot be opened ({error})") from None

    def _enter_wal_mode(self) -> None:
        """Switch to WAL; two processes that begin a file at once collide here, and SQLite does not wait by itself."""
        deadline = time.monotonic() + OPENING
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM scores").fetchone()
        return int(count)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[float, int]]:
        """Known scores among `keys`."""
        found: dict[bytes, tuple[float, int]] = {}
        try:
            for start in range(0, len(keys), LOOKUP_BATCH):
                part = keys[start : start + LOOKUP_BATCH]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT key, nats, tokens FROM scores WHERE key IN ({marks})", part)
                found.update({key: (nats, tokens) for key, nats, tokens in rows})
        except sqlite3.Error as error:
            raise ArtifactError(f"{self.path}: the score cache cannot be read ({error})") from None
        return found

    def put(self, rows: Sequence[tuple[bytes, float, int]]) -> None:
        """Store scores in one transaction: all of them or, on a full disk, none.

        Raises:
            ArtifactError: the disk is full or the file is damaged; what was stored before stays.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise ArtifactError(f"{self.path}: the scores cannot be stored ({error}); those before are kept") from None

    def close(self) -> None:
        self._db.close()


class CachedScorer:
    """An LMScorer that asks the cache first and stores what it had to compute, one transaction a call."""

    def __init__(self, scorer: LMScorer, cache: ScoreCache) -> None:
        self.scorer = scorer
        self.cache = cache
        self.hits = 0
        self.misses = 0

    @property
    def fingerprint(self) -> str:
        return self.scorer.fingerprint

    @property
    def context_length(self) -> int:
        return self.scorer.context_length

    @property
    def prompts_per_call(self) -> int:
        return self.scorer.prompts_per_call

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        """Like the scorer's own.

        Raises:
            ScorerUnavailable: the LM answered with a number that is none (nan, inf); it is not stored.
        """
        keys = [score_key(self.fingerprint, a, b) for a, b in zip(contexts, continuations, strict=True)]
        known = self.cache.get(list(dict.fromkeys(keys)))
        first: dict[bytes, int] = {}  # of each missing request, where it stands first
        for i, key in enumerate(keys):
            if key not in known:
                first.setdefault(key, i)
        missing = list(first.values())
        if missing:
            fresh = self.scorer.loglikelihood([contexts[i] for i in missing], [continuations[i] for i in missing])
            if not np.isfinite(fresh.nats).all():
                raise ScorerUnavailable(f"{self.fingerprint}: the LM gave a log-probability that is no finite number")
            rows = [(keys[i], float(s), int(t)) for i, s, t in zip(missing, fresh.nats, fresh.tokens, strict=True)]
            self.cache.put(rows)
            known.update({key: (nats, tokens) for key, nats, tokens in rows})
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        nats, tokens = zip(*(known[k] for k in keys), strict=True) if keys else ((), ())
        return LogLikelihoods(np.array(nats, dtype=np.float32), np.array(tokens, dtype=np.int64))
