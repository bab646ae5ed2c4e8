from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from udr import live_index, segments
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from udr.filters import parse_filter
from udr.live_index import LiveIndex, load_live_index
from udr.types import FloatArray

DIM = 8


def vectors(n: int, seed: int) -> FloatArray:
    """Clustered, with copies: ties must be ordered too."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((5, DIM))
    rows = centres[rng.integers(5, size=n)] + rng.integers(-1, 2, size=(n, DIM)) * 0.25
    return rows.astype(np.float32)


def brute(model: dict[int, tuple[FloatArray, str]], query: FloatArray, k: int, lang: str = "") -> list[int]:
    scored = [
        (-np.float32((v.astype(np.float64) * query).sum()), i) for i, (v, own) in model.items() if lang in ("", own)
    ]
    found = [i for _, i in sorted(scored)[:k]]
    return found + [-1] * (k - len(found))


def test_it_answers_as_a_plain_map_does_through_a_thousand_changes() -> None:
    rng = np.random.default_rng(7)
    index, model, last = LiveIndex(DIM, "f"), {}, 0
    queries = vectors(3, 99)
    for step in range(300):
        if rng.random() < 0.6 or not model:
            n = int(rng.integers(1, 40))
            ids = last + 1 + rng.permutation(n)
            last += n
            rows, langs = vectors(n, step), rng.choice(["en", "de", "fr"], size=n).tolist()
            index.add(ids, rows, [{"lang": lang} for lang in langs])
            model |= {int(i): (v, lang) for i, v, lang in zip(ids, rows, langs, strict=True)}
        else:
            gone = rng.choice(list(model), size=min(len(model), int(rng.integers(1, 60))), replace=False).tolist()
            assert index.remove([*gone, last + 1000]) == len(gone)
            for i in gone:
                del model[i]
        assert len(index) == len(model)
        k, lang = int(rng.integers(1, 30)), str(rng.choice(["", "en", "xx"]))
        found = index.search(queries, k, "f", parse_filter({"lang": lang} if lang else {}))
        assert found.rows.tolist() == [brute(model, q, k, lang) for q in queries]
        assert (np.diff(np.where(np.isneginf(found.scores), -1e30, found.scores)) <= 0).all()
    some = rng.permutation(list(model))[:50]
    np.testing.assert_array_equal(index.vectors(some), [model[i][0] for i in some.tolist()])


def test_the_number_of_segments_stays_logarithmic() -> None:
    index = LiveIndex(DIM, "f")
    for i in range(1000):
        index.add([i], vectors(1, i), [{}])
    assert len(index) == 1000
    assert index.segments <= 12


def test_a_query_finds_the_same_alone_in_a_batch_and_in_another_layout() -> None:
    rows, queries = vectors(500, 1), vectors(20, 2)
    whole, grown = LiveIndex(DIM, "f"), LiveIndex(DIM, "f")
    whole.add(np.arange(500), rows, [{}] * 500)
    for part in np.array_split(np.random.default_rng(3).permutation(500), 30):
        grown.add(part, rows[part], [{}] * len(part))
    together = whole.search(queries, 10, "f")
    for i, query in enumerate(queries):
        for index in (whole, grown):
            alone = index.search(query[None], 10, "f")
            np.testing.assert_array_equal(alone.rows[0], together.rows[i])
            np.testing.assert_array_equal(alone.scores[0], together.scores[i])


def test_what_does_not_fit_is_refused_and_leaves_nothing_behind() -> None:
    index = LiveIndex(DIM, "f")
    index.add([1, 2], vectors(2, 0), [{}, {}])
    for ids in ([2, 3], [4, 4]):
        with pytest.raises(DataError, match="new"):
            index.add(ids, vectors(2, 1), [{}, {}])
    with pytest.raises(DataError, match="NaN"):
        index.add([5], np.full((1, DIM), np.nan), [{}])
    with pytest.raises(ConfigError):
        index.add([5], np.zeros((1, DIM + 1)), [{}])
    with pytest.raises(FingerprintMismatch):
        index.search(vectors(1, 0), 1, "other")
    with pytest.raises(DataError, match="no such id"):
        index.vectors([3])
    assert len(index) == 2


def test_what_was_there_at_one_moment_is_found_and_read_later() -> None:
    index, rows = LiveIndex(DIM, "f"), vectors(60, 4)
    index.add(np.arange(40), rows[:40], [{}] * 40)
    then = index.current()
    before = index.search(rows[:3], 40, "f")
    index.add(np.arange(40, 60), rows[40:], [{}] * 20)
    index.remove(np.arange(0, 40, 2))
    for one, other in zip(index.search(rows[:3], 40, "f", segments=then), before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(index.vectors([2, 1], then), rows[[2, 1]])
    assert index.holds([39, 40, 2, 77], then).tolist() == [True, False, True, False]
    assert index.holds([39, 40, 2, 77]).tolist() == [True, True, False, False]


def test_searching_beside_changes_sees_one_moment() -> None:
    """Row i and i + 1000000 come and go together with one vector; a search sees both or neither."""
    index, stop, wrong = LiveIndex(DIM, "f"), threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            (found,) = index.search(vectors(1, 5), 50, "f").rows
            ids = {int(i) for i in found if i >= 0}
            low = {i for i in ids if i < 1_000_000}
            if low != {i - 1_000_000 for i in ids - low}:
                wrong.append(ids)

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(300):
        row = vectors(1, i)
        index.add([i, i + 1_000_000], np.vstack([row, row]), [{}, {}])
        if i >= 20:
            index.remove([i - 20, i - 20 + 1_000_000])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


# graphs over many rows


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand rows are many."""
    monkeypatch.setattr(live_index, "_GRAPH", 2000)
    monkeypatch.setattr(live_index, "_MERGED", 500)


def spread(n: int, seed: int, dim: int = 32) -> FloatArray:
    """Clustered directions of length 1, as encoders give them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, dim))
    rows = centres[rng.integers(40, size=n)] + 0.7 * rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def recall(index: LiveIndex, model: dict[int, tuple[FloatArray, str]], queries: FloatArray, lang: str = "") -> float:
    found = index.search(queries, 10, "f", parse_filter({"lang": lang} if lang else {}))
    hits = 0
    for rows, query in zip(found.rows.tolist(), queries, strict=True):
        own = brute(model, query, 10, lang)
        assert len(set(rows)) == 10
        assert all(i in model and model[i][1] in (lang, model[i][1] if not lang else "") for i in rows)
        hits += len(set(rows) & set(own))
    return hits / (10 * len(queries))


def test_graphs_find_nearly_all_of_the_nearest_through_changes(few: None) -> None:
    rng = np.random.default_rng(3)
    index, model, queries = LiveIndex(32, "f"), {}, spread(30, 1)
    for step in range(12):
        ids, rows = np.arange(step * 700, step * 700 + 700), spread(700, step + 10)
        langs = rng.choice(["en", "de", "fr"], size=700, p=[0.6, 0.38, 0.02]).tolist()
        index.add(ids, rows, [{"lang": lang} for lang in langs])
        model |= {int(i): (v, lang) for i, v, lang in zip(ids, rows, langs, strict=True)}
        index.improve()
        gone = rng.choice(list(model), size=150, replace=False).tolist()
        assert index.remove(gone) == 150
        for i in gone:
            del model[i]
        assert len(index) == len(model)
    assert index.in_graphs >= 5000
    assert recall(index, model, queries) >= 0.97
    for lang in ("en", "de", "fr"):  # the last by looking at each row that it admits
        assert recall(index, model, queries, lang) >= 0.97
    index.remove([i for i in model if i % 3])
    model = {i: own for i, own in model.items() if i % 3 == 0}
    while index.improve():
        pass
    assert sum(len(s.ids) for s in index.current()) <= 1.25 * len(model)  # worn graphs were made anew
    assert recall(index, model, queries) >= 0.97


def test_where_no_graph_is_good_enough_every_row_is_looked_at(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "RECALL", 1.1)
    index, rows = LiveIndex(32, "f"), spread(2500, 1)
    index.add(np.arange(2500), rows, [{}] * 2500)
    assert index.improve()
    assert index.in_graphs == 0
    assert not index.improve()  # it is not tried over and over
    assert recall(index, {i: (v, "") for i, v in enumerate(rows)}, spread(20, 2)) == 1.0


def test_a_graph_is_built_beside_changes(few: None) -> None:
    index, stop, last = LiveIndex(32, "f"), threading.Event(), 3000
    index.add(np.arange(3000), spread(3000, 0), [{}] * 3000)

    def change() -> None:
        nonlocal last
        while not stop.is_set():
            index.add([last], spread(1, last), [{}])
            index.remove([last - 2900])
            last += 1

    changer = threading.Thread(target=change)
    changer.start()
    done = [index.improve() for _ in range(5)]
    stop.set()
    changer.join()
    assert any(done)
    assert index.in_graphs
    ids = np.concatenate([s.ids[s.alive] for s in index.current()])
    assert sorted(ids.tolist()) == [*range(100), *range(last - 2900, last)]


# files


def filled() -> LiveIndex:
    index = LiveIndex(32, "f")
    for step in range(8):
        ids = np.arange(step * 400, step * 400 + 400)
        index.add(ids, spread(400, step), [{"lang": "en" if i % 2 else "de"} for i in ids])
    index.improve()
    index.add([9000], spread(1, 77), [{"lang": "it", "new": "1"}])
    index.remove(np.arange(0, 50))
    return index


def test_a_saved_index_answers_as_it_did(few: None, tmp_path: Path) -> None:
    index, queries = filled(), spread(20, 3)
    assert index.in_graphs
    index.save(tmp_path, {"seq": 5})
    again, state = load_live_index(tmp_path)
    assert state == {"seq": 5}
    assert (len(again), again.in_graphs) == (len(index), index.in_graphs)
    for where in ({}, {"lang": "en"}, {"new": {"exists": True}}):
        own = [i.search(queries, 10, "f", parse_filter(where)) for i in (index, again)]
        np.testing.assert_array_equal(own[0].rows, own[1].rows)
        np.testing.assert_array_equal(own[0].scores, own[1].scores)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again.add([9001], spread(1, 78), [{"lang": "it"}])
    again.save(tmp_path, {"seq": 6})
    kept = [p for p in tmp_path.iterdir() if written.get(p) == p.stat().st_mtime_ns]
    assert len(kept) >= 2  # the large segment was not written again
    third, _ = load_live_index(tmp_path)
    assert len(third) == len(index) + 1
    names = {s["name"] for s in json.loads((tmp_path / "manifest.json").read_text())["segments"]}
    assert {p.stem for p in tmp_path.glob("segment-*")} == names


def test_damaged_and_half_written_files_are_refused(few: None, tmp_path: Path) -> None:
    """A flipped byte anywhere, a file cut short or missing: refused, and nothing else is raised."""
    filled().save(tmp_path, {"seq": 5})
    rng = np.random.default_rng(5)
    for path in sorted(tmp_path.iterdir()):
        raw = path.read_bytes()
        for place in rng.integers(len(raw), size=25).tolist():
            path.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << int(rng.integers(8)))]) + raw[place + 1 :])
            with pytest.raises(ArtifactError):
                load_live_index(tmp_path)
            path.write_bytes(raw[:place])
            with pytest.raises(ArtifactError):
                load_live_index(tmp_path)
        path.unlink()
        with pytest.raises(ArtifactError):
            load_live_index(tmp_path)
        path.write_bytes(raw)
    load_live_index(tmp_path)


def test_a_save_that_fails_leaves_the_former_one(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled()
    index.save(tmp_path, {"seq": 5})
    index.add([9001], spread(1, 78), [{}])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("udr.artifacts.os.replace", full)
    with pytest.raises(ArtifactError, match="No space"):
        index.save(tmp_path, {"seq": 6})
    monkeypatch.undo()
    assert load_live_index(tmp_path)[1] == {"seq": 5}
