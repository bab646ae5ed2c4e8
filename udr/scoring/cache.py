"""LM scores on disk, shared by rounds and runs: nothing is scored twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from udr.errors import ArtifactError, PartlyScored, PromptTooLong, ScorerUnavailable
from udr.types import LMScorer, LogLikelihoods

__all__ = ["CachedScorer", "ModelScores", "Score", "ScoreCache", "StoredScore"]

Score = tuple[bytes, float, int]  # key, nats, tokens
StoredScore = tuple[bytes, float, int, str, date]  # and the LM's fingerprint, and the day it was stored

OPENING = 30.0  # seconds to wait for another process that is opening the same file
LAYOUT = 1  # of the tables
EPOCH = date(1970, 1, 1)
LOOKUP_BATCH = 500  # SQLite's default limit of bound variables is higher on every build we meet


def score_key(fingerprint: str, context: str, continuation: str) -> bytes:
    """Identity of one score: LM and dtype (the fingerprint), and the rendered texts (which hold template, z, x, y)."""
    h = hashlib.blake2b(digest_size=16)
    for part in (fingerprint, context, continuation):
        raw = part.encode("utf-8", "surrogatepass")
        h.update(len(raw).to_bytes(8, "little") + raw)
    return h.digest()


class ModelScores(NamedTuple):
    """What the cache holds of one LM."""

    fingerprint: str  # LM, dtype and backend; "" for scores stored before the cache kept the LM beside them
    scores: int
    first: date  # of the days on which they were stored
    last: date


class ScoreCache:
    """A SQLite table key → (nats, tokens), and by which LM and on which day each was made.

    Several processes may read and write; a killed one loses nothing committed. A look-up reads a few pages of the
    B-tree, so that ten million scores open as fast as ten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._models: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._enter_wal_mode()
            self._db.execute("PRAGMA synchronous=FULL")
            self._lay_out()
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

    def _lay_out(self) -> None:
        """Make the tables, or give those of a file from before the LM was kept the columns that they lack."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == LAYOUT:
            return
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()  # another process may have been quicker
        if version != LAYOUT:
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL)"
                " WITHOUT ROWID"
            )
            self._db.execute("ALTER TABLE scores ADD COLUMN model INTEGER NOT NULL DEFAULT 0")
            self._db.execute("ALTER TABLE scores ADD COLUMN day INTEGER NOT NULL DEFAULT 0")  # since 1970
            self._db.execute(
                "CREATE TABLE models (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, probe TEXT)"
            )
            self._db.execute("INSERT INTO models (id, fingerprint) VALUES (0, '')")
            self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        self._db.execute("COMMIT")

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

    def put(self, rows: Sequence[Score], fingerprint: str, day: date | None = None) -> None:
        """Store scores of one LM in one transaction: all of them or, on a full disk, none.

        Raises:
            ArtifactError: the disk is full or the file is damaged; what was stored before stays.
        """
        with self._transaction():
            self._insert("REPLACE", rows, fingerprint, day or date.today())

    def add(self, rows: Sequence[Score], fingerprint: str, day: date) -> int:
        """Like `put`, but what is known already stays as it is; gives how many were new."""
        with self._transaction():
            self._model(fingerprint)  # a change that does not count
            before = self._db.total_changes
            self._insert("IGNORE", rows, fingerprint, day)
            return self._db.total_changes - before

    def _insert(self, conflict: Literal["REPLACE", "IGNORE"], rows: Sequence[Score], name: str, day: date) -> None:
        model, days = self._model(name), (day - EPOCH).days
        self._db.executemany(
            f"INSERT OR {conflict} INTO scores (key, nats, tokens, model, day) VALUES (?, ?, ?, {model}, {days})", rows
        )

    def _model(self, fingerprint: str) -> int:
        """The number of an LM, given when it is first met."""
        if fingerprint not in self._models:
            self._db.execute("INSERT OR IGNORE INTO models (fingerprint) VALUES (?)", [fingerprint])
            (number,) = self._db.execute("SELECT id FROM models WHERE fingerprint = ?", [fingerprint]).fetchone()
            self._models[fingerprint] = int(number)
        return self._models[fingerprint]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._models.clear()  # a number given in here was taken back
            if not isinstance(error, sqlite3.Error):
                raise
            raise ArtifactError(f"{self.path}: the scores cannot be stored ({error}); those before are kept") from None

    def probe(self, fingerprint: str) -> list[float] | None:
        """What an LM thought of the probes (`udr.scoring.identity`) when it was first met."""
        row = self._db.execute("SELECT probe FROM models WHERE fingerprint = ?", [fingerprint]).fetchone()
        return None if row is None or row[0] is None else [float(v) for v in json.loads(row[0])]

    def keep_probe(self, fingerprint: str, values: Sequence[float]) -> None:
        """Remember what an LM thinks of the probes, to know it again."""
        with self._transaction():
            number = self._model(fingerprint)
            self._db.execute("UPDATE models SET probe = ? WHERE id = ?", [json.dumps(list(values)), number])

    def stats(self) -> list[ModelScores]:
        """What is held of each LM, by its fingerprint; reads the whole file."""
        rows = self._db.execute(
            "SELECT fingerprint, count(*), min(day), max(day) FROM scores JOIN models ON model = id"
            " GROUP BY id ORDER BY fingerprint"
        )
        return [
            ModelScores(name, n, EPOCH + timedelta(first), EPOCH + timedelta(last)) for name, n, first, last in rows
        ]

    def read(self, fingerprint: str | None = None, batch: int = 50_000) -> Iterator[list[StoredScore]]:
        """All scores, or those of one LM, in batches ordered by key; others may write in between."""
        names = dict(self._db.execute("SELECT id, fingerprint FROM models"))
        wanted = [number for number, name in names.items() if fingerprint in (None, name)]
        marks, last = ",".join(map(str, wanted)), b""
        while True:
            rows = self._db.execute(
                f"SELECT key, nats, tokens, model, day FROM scores WHERE key > ? AND model IN ({marks})"
                " ORDER BY key LIMIT ?",
                [last, batch],
            ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [(key, nats, tokens, names[model], EPOCH + timedelta(day)) for key, nats, tokens, model, day in rows]

    def prune(self, fingerprint: str | None = None, before: date | None = None, batch: int = 20_000) -> int:
        """Forget the scores of one LM (or of all), those stored before a day (or all); gives their number.

        The file is made smaller afterwards. Others may write in between.
        """
        condition: list[str] = ["key > ?"]
        values: list[str | int] = []
        if fingerprint is not None:
            condition.append("model = (SELECT id FROM models WHERE fingerprint = ?)")
            values.append(fingerprint)
        if before is not None:
            condition.append("day < ?")
            values.append((before - EPOCH).days)
        select = f"SELECT key FROM scores WHERE {' AND '.join(condition)} ORDER BY key LIMIT {batch}"
        last, forgotten = b"", 0
        while keys := self._db.execute(select, [last, *values]).fetchall():
            with self._transaction():
                self._db.executemany("DELETE FROM scores WHERE key = ?", keys)
            last, forgotten = keys[-1][0], forgotten + len(keys)
        if forgotten:
            try:
                self._db.execute("VACUUM")
            except sqlite3.Error as error:
                raise ArtifactError(
                    f"{self.path}: {forgotten} scores were forgotten, but the file cannot be made smaller ({error})"
                ) from None
        return forgotten

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

    @property
    def tokens_computed(self) -> int:
        return self.scorer.tokens_computed

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        return self.scorer.beginnings(before, options)

    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int:
        """Tokens that would be computed for what is not known yet."""
        missing = self.missing(contexts, continuations)
        return self.scorer.count_tokens([contexts[i] for i in missing], [continuations[i] for i in missing])

    def missing(self, contexts: Sequence[str], continuations: Sequence[str]) -> list[int]:
        """Requests that are not known yet, a repeated one once."""
        return list(self._look_up(contexts, continuations)[2].values())

    def _look_up(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[bytes], dict[bytes, tuple[float, int]], dict[bytes, int]]:
        """The key of every request, the scores that are known, and where each missing request stands first."""
        keys = [score_key(self.fingerprint, a, b) for a, b in zip(contexts, continuations, strict=True)]
        known = self.cache.get(list(dict.fromkeys(keys)))
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in known:
                first.setdefault(key, i)
        return keys, known, first

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        """Like the scorer's own.

        Raises:
            ScorerUnavailable: the LM answered with a number that is none (nan, inf); it is not stored, the others are.
        """
        keys, known, first = self._look_up(contexts, continuations)
        missing = list(first.values())
        if missing:
            try:
                fresh = self.scorer.loglikelihood([contexts[i] for i in missing], [continuations[i] for i in missing])
            except PartlyScored as error:  # what servers gave before they died is paid for
                self._store([keys[missing[i]] for i in error.requests], error.found)
                raise
            except PromptTooLong as error:
                if error.request is not None:
                    error.request = missing[error.request]
                raise
            rows = self._store([keys[i] for i in missing], fresh)
            known.update({key: (nats, tokens) for key, nats, tokens in rows})
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        nats, tokens = zip(*(known[k] for k in keys), strict=True) if keys else ((), ())
        return LogLikelihoods(np.array(nats, dtype=np.float32), np.array(tokens, dtype=np.int64))

    def _store(self, keys: Sequence[bytes], found: LogLikelihoods) -> list[Score]:
        rows = [(k, float(s), int(t)) for k, s, t in zip(keys, found.nats, found.tokens, strict=True) if np.isfinite(s)]
        if rows:
            self.cache.put(rows, self.fingerprint)
        if len(rows) < len(keys):
            raise ScorerUnavailable(f"{self.fingerprint}: the LM gave a log-probability that is no finite number")
        return rows
