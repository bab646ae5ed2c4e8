from __future__ import annotations

import threading

import numpy as np
import pytest

from udr.errors import ConfigError, DataError, FingerprintMismatch
from udr.filters import parse_filter
from udr.live_index import LiveIndex
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
