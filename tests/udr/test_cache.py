"""The score cache: nothing is scored twice, and nothing committed is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.errors import ArtifactError, DataError, PartlyScored, ScorerUnavailable
from udr.fakes import FakeLM
from udr.scoring.cache import CachedScorer, ScoreCache, score_key
from udr.scoring.exchange import export_scores, import_scores
from udr.types import LogLikelihoods


class Counting(FakeLM):
    """Remembers what it was asked."""

    def __init__(self, fingerprint: str = "counting") -> None:
        super().__init__()
        self.name = fingerprint
        self.asked: list[tuple[str, str]] = []

    @property
    def fingerprint(self) -> str:
        return self.name

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        self.asked += zip(contexts, continuations, strict=True)
        return super().loglikelihood(contexts, continuations)


class Broken(FakeLM):
    """Answers the second request with a number that is none."""

    value = np.nan

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        found = super().loglikelihood(contexts, continuations)
        found.nats[1] = self.value
        return found


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another process that has the cache's names at hand."""
    head = """
import sys
from pathlib import Path
from udr.errors import ArtifactError
from udr.fakes import FakeLM
from udr.scoring.cache import CachedScorer, ScoreCache, score_key
"""
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


OpenCache = Callable[[Path], ScoreCache]


@pytest.fixture
def open_cache() -> Iterator[OpenCache]:
    """Open caches that are closed after the test."""
    opened: list[ScoreCache] = []

    def open_one(path: Path) -> ScoreCache:
        opened.append(ScoreCache(path))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


def test_a_second_call_scores_nothing_and_gives_the_same_numbers(open_cache: OpenCache, tmp_path: Path) -> None:
    lm = Counting()
    scorer = CachedScorer(lm, open_cache(tmp_path / "scores.sqlite"))
    contexts, continuations = ["a\tb\nc\t", "", "a\tb\nc\t"], ["b", "x y", "d"]
    first = scorer.loglikelihood(contexts, continuations)
    assert len(lm.asked) == 3
    again = scorer.loglikelihood(contexts, continuations)
    assert len(lm.asked) == 3
    plain = FakeLM().loglikelihood(contexts, continuations)
    for found in (first, again):
        assert found.nats.dtype == np.float32
        assert found.tokens.dtype == np.int64
        assert np.array_equal(found.nats, plain.nats)
        assert np.array_equal(found.tokens, plain.tokens)
    assert (scorer.hits, scorer.misses) == (3, 3)


def test_only_what_is_missing_is_scored_and_a_repeated_request_once(open_cache: OpenCache, tmp_path: Path) -> None:
    lm = Counting()
    scorer = CachedScorer(lm, open_cache(tmp_path / "scores.sqlite"))
    scorer.loglikelihood(["a"], ["x"])
    found = scorer.loglikelihood(["b", "a", "c", "b"], ["x", "x", "y", "x"])
    assert lm.asked == [("a", "x"), ("b", "x"), ("c", "y")]
    assert found.nats.tolist() == FakeLM().loglikelihood(["b", "a", "c", "b"], ["x", "x", "y", "x"]).nats.tolist()
    assert (scorer.hits, scorer.misses) == (2, 3)


def test_another_model_misses_and_a_reopened_file_hits(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "scores.sqlite"
    for name, fresh in [("one", 1), ("two", 1), ("one", 0)]:
        lm, cache = Counting(name), open_cache(path)
        CachedScorer(lm, cache).loglikelihood(["a"], ["x"])
        assert len(lm.asked) == fresh
        cache.close()
    assert len(open_cache(path)) == 2


def test_no_requests_need_no_model(open_cache: OpenCache, tmp_path: Path) -> None:
    lm = Counting()
    found = CachedScorer(lm, open_cache(tmp_path / "scores.sqlite")).loglikelihood([], [])
    assert found.nats.shape == found.tokens.shape == (0,)
    assert lm.asked == []


texts = st.text(max_size=3)


@given(st.tuples(texts, texts, texts), st.tuples(texts, texts, texts))
def test_keys_are_equal_only_for_equal_requests(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (score_key(*a) == score_key(*b)) == (a == b)


def test_thousands_of_keys_are_looked_up_at_once(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "scores.sqlite")
    rows = [(score_key("lm", str(i), "x"), -float(i), i) for i in range(2500)]
    cache.put(rows, "lm")
    assert cache.get([k for k, _, _ in rows] + [score_key("lm", "no", "x")]) == {k: (s, t) for k, s, t in rows}
    assert len(cache) == 2500


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused_and_the_others_are_stored(
    open_cache: OpenCache, tmp_path: Path, value: float
) -> None:
    lm, cache = Broken(), open_cache(tmp_path / "scores.sqlite")
    lm.value = value
    with pytest.raises(ScorerUnavailable, match="fake-lm-1: the LM gave a log-probability that is no finite number"):
        CachedScorer(lm, cache).loglikelihood(["a", "b"], ["x", "y"])
    assert list(cache.get([score_key("fake-lm-1", *p) for p in ("ax", "by")])) == [score_key("fake-lm-1", *"ax")]


def test_two_processes_share_one_cache(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    code = """
path, first = Path(sys.argv[1]), int(sys.argv[2])
scorer = CachedScorer(FakeLM(), ScoreCache(path))
for i in range(first, first + 60):
    scorer.loglikelihood([f"context {i}", "shared"], ["x", f"y {i % 30}"])
print(scorer.misses)
"""
    writers = [run(code, path, first) for first in (0, 40)]
    missed = [int(w.communicate(timeout=60)[0]) for w in writers]
    cache = open_cache(path)
    assert len(cache) == 100 + 30
    assert sum(missed) >= 130  # what both asked for at one time was scored twice at most
    lm = Counting(FakeLM().fingerprint)
    CachedScorer(lm, cache).loglikelihood([f"context {i}" for i in range(100)], ["x"] * 100)
    assert lm.asked == []


def test_a_writer_killed_in_mid_run_loses_nothing_that_was_committed(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    code = """
cache = ScoreCache(Path(sys.argv[1]))
for i in range(10**6):
    cache.put([(score_key("lm", str(i), str(j)), -float(i), j) for j in range(50)], "lm")
    print(i, flush=True)
"""
    writer = run(code, path)
    assert writer.stdout is not None
    committed = [int(writer.stdout.readline()) for _ in range(20)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.communicate(timeout=60)[0].split()
    committed = int(rest[-1]) if rest else committed
    cache = open_cache(path)
    keys = [score_key("lm", str(i), str(j)) for i in range(committed + 1) for j in range(50)]
    assert len(cache.get(keys)) == len(keys)
    assert len(cache) % 50 == 0  # the last transaction stands whole or not at all
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_disk_gives_an_artifact_error_and_keeps_what_was_stored(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    code = """
import resource
cache = ScoreCache(Path(sys.argv[1]))
cache.put([(score_key("lm", "0", "x"), -1.0, 1)], "lm")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for i in range(1, 100):
        cache.put([(score_key("lm", str(i), str(j)), -1.0, 1) for j in range(200)], "lm")
except ArtifactError as error:
    print(i, error)
"""
    writer = run(code, path)
    told = writer.communicate(timeout=60)[0]
    assert writer.returncode == 0, told
    failed, _, message = told.partition(" ")
    assert message.startswith(f"{path}: the scores cannot be stored (")
    assert message.strip().endswith("those before are kept")
    cache = open_cache(path)
    assert len(cache) == 1 + 200 * (int(failed) - 1)
    cache.put([(score_key("lm", "after", "x"), -1.0, 1)], "lm")


def test_a_full_table_leaves_no_transaction_open(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "scores.sqlite")
    cache._db.execute("PRAGMA max_page_count = 6")
    with pytest.raises(ArtifactError, match="database or disk is full"):
        cache.put([(score_key("lm", str(i), "x"), -1.0, 1) for i in range(5000)], "lm")
    assert len(cache) == 0
    cache.put([(score_key("lm", "a", "x"), -1.0, 1)], "lm")
    assert len(cache) == 1


def test_a_failed_transaction_is_taken_back(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "scores.sqlite")
    bad: Any = [(score_key("lm", "a", "x"), -1.0, 1), (score_key("lm", "b", "x"), None, 1)]
    with pytest.raises(ArtifactError, match="those before are kept"):
        cache.put(bad, "lm")
    assert len(cache) == 0
    cache.put(bad[:1], "lm")
    assert len(cache) == 1


def test_a_writer_waits_for_another_one(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    cache = open_cache(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.execute, ["COMMIT"])
        release.start()
        cache.put([(score_key("lm", "a", "x"), -1.0, 1)], "lm")
        release.join()
    assert len(cache) == 1


def test_a_file_that_is_no_database_is_refused(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(ArtifactError, match="the score cache cannot be opened"):
        open_cache(path)
    path.write_bytes(b"")
    (path.parent / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="the score cache cannot be opened"):
        open_cache(path.parent / "file" / "scores.sqlite")


def test_a_damaged_table_is_refused_when_read(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    cache = open_cache(path)
    keys = [score_key("lm", str(i), "x") for i in range(3000)]
    cache.put([(k, -1.0, 1) for k in keys], "lm")
    cache._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        open_cache(path).get(keys)


def test_many_may_begin_one_cache_at_the_same_moment(tmp_path: Path) -> None:
    for attempt in range(20):
        path = tmp_path / f"{attempt}.sqlite"
        together = threading.Barrier(8)
        failures: list[ArtifactError] = []

        def begin(path: Path = path, together: threading.Barrier = together, failures: list = failures) -> None:
            together.wait()
            try:
                ScoreCache(path).close()
            except ArtifactError as error:
                failures.append(error)

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_scores_of_a_call_that_a_server_cut_short_are_kept(open_cache: OpenCache, tmp_path: Path) -> None:
    class Dying(Counting):
        alive = False

        def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
            found = super().loglikelihood(contexts, continuations)
            if not self.alive:
                raise PartlyScored("gone", [1], LogLikelihoods(found.nats[1:2], found.tokens[1:2]))
            return found

    lm = Dying()
    scorer = CachedScorer(lm, open_cache(tmp_path / "scores.sqlite"))
    with pytest.raises(PartlyScored):
        scorer.loglikelihood(["a", "b", "c"], ["x", "x", "x"])
    lm.alive, lm.asked = True, []
    found = scorer.loglikelihood(["a", "b", "c"], ["x", "x", "x"])
    assert lm.asked == [("a", "x"), ("c", "x")]
    assert found.nats.tolist() == FakeLM().loglikelihood(["a", "b", "c"], ["x"] * 3).nats.tolist()


# what is held, sharing it, forgetting it

TODAY = date(2026, 3, 1)


def rows_of(name: str, count: int) -> list[tuple[bytes, float, int]]:
    return [(score_key(name, str(i), "x"), -float(i), i + 1) for i in range(count)]


def fill(cache: ScoreCache) -> None:
    cache.put(rows_of("one", 30), "one", TODAY)
    cache.put(rows_of("two", 20), "two", TODAY - timedelta(40))
    cache.put(rows_of("two", 5), "two", TODAY)


def content(cache: ScoreCache) -> list[Any]:
    return [row for rows in cache.read(batch=7) for row in rows]


def test_the_cache_tells_how_many_scores_of_each_model_and_since_when(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "scores.sqlite")
    assert cache.stats() == []
    fill(cache)
    assert cache.stats() == [("one", 30, TODAY, TODAY), ("two", 20, TODAY - timedelta(40), TODAY)]


def test_everything_is_read_once_in_batches_ordered_by_key(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "scores.sqlite")
    fill(cache)
    expected = sorted((*row, "one", TODAY) for row in rows_of("one", 30))
    two = [(*row, "two", TODAY if i < 5 else TODAY - timedelta(40)) for i, row in enumerate(rows_of("two", 20))]
    assert content(cache) == sorted([*expected, *two])
    assert [row for rows in cache.read("one", 7) for row in rows] == expected
    assert list(cache.read("three")) == []


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"fingerprint": "one"}, {"two": 20}),
        ({"before": TODAY}, {"one": 30, "two": 5}),
        ({"fingerprint": "two", "before": TODAY}, {"one": 30, "two": 5}),
        ({"fingerprint": "three"}, {"one": 30, "two": 20}),
        ({}, {}),
    ],
)
def test_pruning_forgets_what_was_asked_and_nothing_else(
    open_cache: OpenCache, tmp_path: Path, wanted: dict[str, Any], left: dict[str, int]
) -> None:
    cache = open_cache(tmp_path / "scores.sqlite")
    fill(cache)
    assert cache.prune(**wanted, batch=7) == 50 - sum(left.values())
    assert {m.fingerprint: m.scores for m in cache.stats()} == left


def test_others_write_while_a_cache_is_read_and_pruned(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    cache, other = open_cache(path), open_cache(path)
    fill(cache)
    reading = cache.read(batch=10)
    next(reading)
    other.put(rows_of("three", 3), "three")
    assert sum(len(rows) for rows in reading) >= 40
    assert cache.prune("three") == 3


def test_a_file_from_before_the_model_was_kept_is_taken_over(open_cache: OpenCache, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.execute(
            "CREATE TABLE scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID"
        )
        old.executemany("INSERT INTO scores VALUES (?, ?, ?)", rows_of("lm", 9))
        old.commit()
    cache = open_cache(path)
    assert len(cache.get([key for key, *_ in rows_of("lm", 9)])) == 9
    assert [(m.fingerprint, m.scores) for m in cache.stats()] == [("", 9)]


def test_exported_scores_are_imported_whole(open_cache: OpenCache, tmp_path: Path) -> None:
    ours, theirs = open_cache(tmp_path / "ours.sqlite"), open_cache(tmp_path / "theirs.sqlite")
    fill(ours)
    assert export_scores(ours, tmp_path / "all.parquet") == 50
    assert export_scores(ours, tmp_path / "one.parquet", "one") == 30
    assert import_scores(theirs, tmp_path / "one.parquet") == (30, 0, 0)
    assert import_scores(theirs, tmp_path / "all.parquet") == (20, 30, 0)
    assert content(theirs) == content(ours)


def test_an_import_leaves_known_scores_as_they_are_and_counts_those_that_say_something_else(
    open_cache: OpenCache, tmp_path: Path
) -> None:
    ours, theirs = open_cache(tmp_path / "ours.sqlite"), open_cache(tmp_path / "theirs.sqlite")
    ours.put(rows_of("lm", 4), "lm", TODAY)
    export_scores(ours, tmp_path / "lm.parquet")
    near, far = [(k, nats - shift, t) for (k, nats, t), shift in zip(rows_of("lm", 2), (0.01, 3), strict=True)]
    theirs.put([near, far], "lm", TODAY)
    assert import_scores(theirs, tmp_path / "lm.parquet") == (2, 2, 1)
    assert theirs.get([near[0], far[0]]) == {near[0]: near[1:], far[0]: far[1:]}


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("key", b"short", "the key is not 16 bytes"),
        ("nats", float("nan"), "nan is no log-probability"),
        ("nats", 0.5, "0.5 is no log-probability"),
        ("tokens", 0, "0 is no number of tokens"),
        ("model", None, "the model or the day is missing"),
    ],
)
def test_an_import_refuses_what_cannot_be_a_score(
    open_cache: OpenCache, tmp_path: Path, column: str, value: Any, complaint: str
) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    cache = open_cache(tmp_path / "scores.sqlite")
    row = {"key": b"k" * 16, "nats": -1.0, "tokens": 1, "model": "lm", "day": TODAY}
    bad = tmp_path / "bad.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row, row | {column: value}]), bad)
    with pytest.raises(DataError, match=f"bad.parquet: row 1: {complaint}"):
        import_scores(cache, bad)
    parquet.write_table(pyarrow.table({"key": [b"k" * 16]}), bad)
    with pytest.raises(DataError, match="has no column 'nats'"):
        import_scores(cache, bad)
    bad.write_text("no table")
    with pytest.raises(DataError, match="is no Parquet file of scores"):
        import_scores(cache, bad)
    assert len(cache) == 0
