"""The index against brute force, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udr.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FingerprintMismatch,
    IndexNotReady,
    MissingDependencyError,
    UDRError,
)
from udr.index import FlatIndex, load_index
from udr.types import FloatArray, Hits, Index, IntArray

PRINT = "encoder-1"


def filled(ids: Any, vectors: Any) -> FlatIndex:
    index = FlatIndex(np.shape(vectors)[1], PRINT)
    index.add(np.array(ids), np.array(vectors, dtype=np.float32), PRINT)
    return index


def brute_force(
    stored: dict[int, FloatArray], queries: FloatArray, k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Score all pairs in float64, round to float32, sort by score and then by id, pad to k."""
    all_rows, all_scores = [], []
    for query in queries.astype(np.float64):
        scored = [(float(np.float32(np.sum(query * v))), i) for i, v in stored.items()]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        scored = (scored + [(-np.inf, -1)] * k)[:k]
        all_rows.append([i for _, i in scored])
        all_scores.append([s for s, _ in scored])
    return all_rows, all_scores


def assert_equals_brute_force(hits: Hits, stored: dict[int, FloatArray], queries: FloatArray, k: int) -> None:
    rows, scores = brute_force(stored, queries, k)
    assert hits.rows.tolist() == rows
    assert hits.scores.tolist() == scores
    assert (hits.rows.dtype.name, hits.scores.dtype.name) == ("int64", "float32")


def rng_vectors(seed: int, n: int, d: int) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_index_satisfies_the_protocol() -> None:
    index = FlatIndex(3, PRINT)
    assert isinstance(index, Index)
    assert (index.dim, index.fingerprint, len(index)) == (3, PRINT, 0)


# Small whole numbers make many exact ties.
vector = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
operation = st.one_of(
    st.tuples(st.just("add"), st.dictionaries(st.integers(0, 40), vector, min_size=1, max_size=12)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 40), max_size=8)),
    st.tuples(st.just("search"), st.tuples(st.lists(vector, min_size=1, max_size=3), st.integers(1, 25))),
)


@given(st.lists(operation, min_size=1, max_size=10))
@settings(max_examples=80, deadline=None)
def test_any_sequence_of_add_remove_search_equals_brute_force(operations: list[tuple[str, Any]]) -> None:
    index, stored = FlatIndex(3, PRINT), dict[int, FloatArray]()
    for kind, value in operations:
        if kind == "add":
            new = {i: np.array(v, dtype=np.float32) for i, v in value.items()}
            if new.keys() & stored.keys():
                with pytest.raises(DataError):
                    index.add(np.array(list(new)), np.stack(list(new.values())), PRINT)
            else:
                index.add(np.array(list(new)), np.stack(list(new.values())), PRINT)
                stored |= new
        elif kind == "remove":
            assert index.remove(np.array(value, dtype=np.int64)) == len(set(value) & stored.keys())
            stored = {i: v for i, v in stored.items() if i not in value}
        elif stored:
            queries = np.array(value[0], dtype=np.float32)
            assert_equals_brute_force(index.search(queries, value[1], PRINT), stored, queries, value[1])
        assert len(index) == len(stored)
        assert index.ids.tolist() == sorted(stored)


@pytest.mark.parametrize("crowding", [0.0, 20.0, 1000.0, 1e6])
def test_search_equals_brute_force_even_where_vectors_crowd(crowding: float) -> None:
    vectors = rng_vectors(0, 600, 32) + np.float32(crowding) * rng_vectors(1, 1, 32)
    queries = vectors[:40]
    index = filled(range(600), vectors)
    assert_equals_brute_force(index.search(queries, 10, PRINT), dict(enumerate(vectors)), queries, 10)


@pytest.mark.parametrize("n", [5, 100])
def test_more_copies_than_places_come_by_ascending_id(n: int) -> None:
    copies = np.repeat(rng_vectors(2, 1, 48), n, axis=0)
    shuffled = np.random.default_rng(3).permutation(n)
    index = filled(shuffled, copies)
    assert index.search(copies[:30], 4, PRINT).rows.tolist() == [[0, 1, 2, 3]] * min(n, 30)


def test_zero_vectors_tie_by_id() -> None:
    index = filled(range(49, -1, -1), np.zeros((50, 4)))
    assert index.search(np.zeros((1, 4), np.float32), 3, PRINT).rows.tolist() == [[0, 1, 2]]


def test_query_finds_the_same_alone_and_in_a_batch() -> None:
    vectors, queries = rng_vectors(4, 300, 40), rng_vectors(5, 64, 40)  # 20 and more queries go through BLAS
    index = filled(range(300), vectors)
    together = index.search(queries, 7, PRINT)
    alone = [index.search(q[None], 7, PRINT) for q in queries]
    assert np.array_equal(together.rows, np.concatenate([h.rows for h in alone]))
    assert np.array_equal(together.scores, np.concatenate([h.scores for h in alone]))


def test_order_of_adding_changes_nothing() -> None:
    vectors, queries = rng_vectors(6, 200, 24), rng_vectors(7, 30, 24)
    shuffled = np.random.default_rng(8).permutation(200)
    first = filled(range(200), vectors).search(queries, 9, PRINT)
    second = filled(shuffled, vectors[shuffled]).search(queries, 9, PRINT)
    assert np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.scores, second.scores)


def test_places_beyond_the_index_hold_minus_one_and_minus_infinity() -> None:
    hits = filled([7, 3], [[1.0, 0.0], [0.0, 1.0]]).search(np.array([[1.0, 0.5]], np.float32), 4, PRINT)
    assert hits.rows.tolist() == [[7, 3, -1, -1]]
    assert hits.scores.tolist() == [[1.0, 0.5, -np.inf, -np.inf]]


def test_no_queries_give_no_rows() -> None:
    assert filled([1], [[1.0]]).search(np.empty((0, 1), np.float32), 3, PRINT).rows.shape == (0, 3)


def test_stored_vectors_come_back_in_the_order_asked() -> None:
    vectors = rng_vectors(9, 5, 3)
    index = filled([10, 20, 30, 40, 50], vectors)
    index.remove(np.array([20]))
    assert np.array_equal(index.vectors(np.array([50, 10])), vectors[[4, 0]])
    assert index.vectors(np.array([], dtype=np.int64)).shape == (0, 3)
    with pytest.raises(DataError, match="20"):
        index.vectors(np.array([10, 20]))


def test_removed_id_may_be_added_again_with_another_vector() -> None:
    index = filled([1, 2], [[1.0, 0.0], [0.5, 0.0]])
    assert index.remove(np.array([1, 99, 1])) == 1
    index.add(np.array([1]), np.array([[0.25, 0.0]], np.float32), PRINT)
    assert index.search(np.array([[1.0, 0.0]], np.float32), 2, PRINT).rows.tolist() == [[2, 1]]


def test_index_refuses_vectors_of_another_encoder() -> None:
    index = filled([1], [[1.0]])
    with pytest.raises(FingerprintMismatch, match=r"'encoder-1'.*'encoder-2'"):
        index.add(np.array([2]), np.ones((1, 1), np.float32), "encoder-2")
    with pytest.raises(FingerprintMismatch, match=r"'encoder-1'.*'encoder-2'"):
        index.search(np.ones((1, 1), np.float32), 1, "encoder-2")


@pytest.mark.parametrize(
    ("ids", "vectors", "error", "words"),
    [
        ([2, 1], [[1.0, 0.0], [0.0, 1.0]], DataError, "1"),
        ([5, 6, 5], [[1.0, 0.0]] * 3, DataError, "5"),
        ([-1], [[1.0, 0.0]], DataError, "-1"),
        ([2], [[1.0, float("nan")]], DataError, "NaN"),
        ([2], [[1.0, 1e300]], DataError, "1e\\+15"),
        ([2], [[1.0, -1e16]], DataError, "1e\\+15"),
        ([2], [[1.0]], ConfigError, "2"),
        ([2], [1.0, 0.0], ConfigError, "shape"),
        ([2, 3], [[1.0, 0.0]], ConfigError, "2 ids for 1"),
        ([2.0], [[1.0, 0.0]], ConfigError, "integers"),
        ([[2]], [[1.0, 0.0]], ConfigError, "shape"),
    ],
)
def test_refused_add_leaves_the_index_as_it_was(ids: Any, vectors: Any, error: type[UDRError], words: str) -> None:
    index = filled([1], [[1.0, 0.0]])
    with pytest.raises(error, match=words):
        index.add(np.array(ids), np.array(vectors), PRINT)
    assert index.ids.tolist() == [1]
    assert index.search(np.ones((1, 2), np.float32), 2, PRINT).rows.tolist() == [[1, -1]]


def test_search_refuses_what_it_cannot_answer() -> None:
    index, query = filled([1], [[1.0, 0.0]]), np.ones((1, 2), np.float32)
    with pytest.raises(ConfigError, match="k must"):
        index.search(query, 0, PRINT)
    with pytest.raises(ConfigError, match=r"\(n, 2\)"):
        index.search(np.ones((1, 3), np.float32), 1, PRINT)
    with pytest.raises(DataError, match="NaN"):
        index.search(query * np.nan, 1, PRINT)
    index.remove(np.array([1]))
    with pytest.raises(IndexNotReady):
        index.search(query, 1, PRINT)
    with pytest.raises(ConfigError, match="dim"):
        FlatIndex(0, PRINT)


def saved(path: Path, ids: IntArray | None = None) -> FlatIndex:
    ids = np.arange(50) * 3 if ids is None else ids
    index = filled(ids, rng_vectors(10, len(ids), 6))
    index.save(path)
    return index


def test_loaded_index_finds_the_same_and_can_be_changed(tmp_path: Path) -> None:
    index, queries = saved(tmp_path / "made" / "here"), rng_vectors(11, 5, 6)
    again = load_index(tmp_path / "made" / "here")
    assert (again.dim, again.fingerprint, again.ids.tolist()) == (6, PRINT, index.ids.tolist())
    before = index.search(queries, 8, PRINT)
    for one in (index, again):
        hits = one.search(queries, 8, PRINT)
        assert np.array_equal(hits.rows, before.rows)
        assert np.array_equal(hits.scores, before.scores)
        with pytest.raises(DataError, match="3"):
            one.add(np.array([3]), queries[:1], PRINT)
        assert one.remove(before.rows[0]) == 8
        one.add(np.array([1]), 2 * queries[:1], PRINT)
    assert np.array_equal(again.search(queries, 60, PRINT).rows, index.search(queries, 60, PRINT).rows)
    assert again.search(queries, 1, PRINT).rows[0, 0] == 1


def test_loaded_crowded_index_still_equals_brute_force(tmp_path: Path) -> None:
    # So near one another that FAISS's rounding reorders more places than it gives to spare.
    vectors = rng_vectors(0, 1000, 64) + np.float32(1e6) * rng_vectors(1, 1, 64)
    filled(range(1000), vectors).save(tmp_path)
    hits = load_index(tmp_path).search(vectors[:40], 10, PRINT)
    assert_equals_brute_force(hits, dict(enumerate(vectors)), vectors[:40], 10)


def test_empty_index_can_be_saved(tmp_path: Path) -> None:
    FlatIndex(4, PRINT).save(tmp_path)
    assert (load_index(tmp_path).dim, len(load_index(tmp_path))) == (4, 0)


def test_manifest_says_what_is_inside(tmp_path: Path) -> None:
    saved(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(manifest) == ["count", "dim", "faiss", "fingerprint", "sha256"]
    assert (manifest["dim"], manifest["count"], manifest["fingerprint"]) == (6, 50, PRINT)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.faiss", "manifest.json"]


def flip_a_byte(folder: Path) -> None:
    raw = bytearray((folder / "index.faiss").read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / "index.faiss").write_bytes(raw)


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda folder: (folder / "index.faiss").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"dim": 6'),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: edit_manifest(folder, fingerprint=None),
        lambda folder: edit_manifest(folder, count=49),
        lambda folder: edit_manifest(folder, dim=7),
    ],
)
def test_damaged_artifact_is_refused(damage: Any, tmp_path: Path) -> None:
    saved(tmp_path)
    assert len(load_index(tmp_path)) == 50
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        load_index(tmp_path)


def test_save_that_fails_while_writing_keeps_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(ArtifactError, match="no space left"):
            saved(tmp_path, np.arange(9))
    assert len(load_index(tmp_path)) == 50
    saved(tmp_path, np.arange(9))
    assert len(load_index(tmp_path)) == 9


def test_save_stopped_between_its_two_files_is_refused_on_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    moves: list[object] = []
    move = os.replace

    def stop_at_the_second(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError("stopped")
        move(source, target)

    monkeypatch.setattr(os, "replace", stop_at_the_second)
    with pytest.raises(ArtifactError, match="stopped"):
        saved(tmp_path, np.arange(9))
    with pytest.raises(ArtifactError, match="hash"):
        load_index(tmp_path)


def test_folder_that_cannot_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        saved(tmp_path / "file")


def test_absent_faiss_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"faiss-cpu is not installed.*udr\[train\]"):
        FlatIndex(2, PRINT)


def test_module_loads_faiss_only_when_an_index_is_made() -> None:
    code = "import sys, udr.index; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
