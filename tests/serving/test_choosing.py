"""What is found and chosen while a pool changes, and from words and vectors together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from serving.batching import EncodingWorker
from serving.catalog import Catalog
from serving.choosing import Search
from serving.pool_index import Lexical
from serving.retrievers import Retrievers
from serving.row_memory import RowMemory
from serving.sql.jobs import Jobs, Step
from serving.sql.store import Store
from udr.fakes import FakeEncoder
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, Query

SPEC = TaskSpec(name="p", family="custom", kind="generation", metric="rouge_l")
RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(60)]
ROWS = [Demonstration(str(i), " ".join(RNG.choice(WORDS, 6).tolist()), "y") for i in range(40)]
QUERY = Query("q", " ".join(WORDS[:10]))


class Uneven(FakeEncoder):
    """Bags of words whose words weigh differently, so that no two demonstrations are alike."""

    def _encode(self, rows: Any, instruction: str) -> FloatArray:
        vectors = super()._encode(rows, instruction) * np.linspace(1, 2, self.dim, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def catalog(store: Store) -> Iterator[Catalog]:
    worker = EncodingWorker()
    catalog = Catalog(store, Retrievers(Uneven, {}), worker)
    catalog.write(catalog.create(SPEC), ROWS)
    yield catalog
    worker.close()


def found(catalog: Catalog, retriever: str, **asked: Any) -> list[str]:
    pool = catalog.pool("p")
    ranking = catalog.rank_by(pool, retriever)
    assert ranking.encoding
    vectors = ranking.encoding.encoder.encode_queries([QUERY])
    (answer,) = catalog.retrieve(pool, ranking, [QUERY], vectors, Search(**asked))
    return [f.demonstration.id for f in answer.found]


@pytest.mark.parametrize("selection", ["mmr", "dpp"])
def test_words_and_vectors_together_are_spread_out_as_vectors_are(catalog: Catalog, selection: str) -> None:
    asked = {"k": 8, "selection": selection, "considered": len(ROWS)}
    assert found(catalog, "hybrid", **asked) == found(catalog, "dense", **asked)
    few = asked | {"considered": 8}
    assert set(found(catalog, "hybrid", **few)) == set(found(catalog, "hybrid", k=8))


@pytest.mark.parametrize("selection", ["mmr", "dpp", "coverage", "balanced"])
def test_what_a_load_has_not_encoded_yet_is_in_no_ones_way(catalog: Catalog, selection: str) -> None:
    jobs, pool = Jobs(catalog.store.database), catalog.pool("p")
    job = jobs.create(pool.row.id, "load", {})
    jobs.claim("me")
    more = [Demonstration(f"late {i}", QUERY.input, "y") for i in range(30)]
    catalog.store.write(pool.row.id, more, {}, step=Step(job.id, "me", 0, 0, 0))
    chosen = found(catalog, "hybrid", k=5, selection=selection, considered=20)
    assert len(chosen) == 5
    late = [key for key in chosen if key.startswith("late")]
    assert bool(late) == (selection in ("coverage", "balanced"))


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
@pytest.mark.parametrize("selection", ["mmr", "dpp", "balanced"])
def test_what_goes_away_while_it_is_chosen_is_no_error(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, retriever: str, selection: str
) -> None:
    """The rows' texts are read, then they are deleted and the index follows, then their vectors are compared."""
    get = RowMemory.get

    def delete_then(self: RowMemory, pool_id: int, rows: Sequence[int]) -> Any:
        read = get(self, pool_id, rows)
        catalog.store.delete(pool_id, [s.demonstration.id for s in list(read.values())[::2]])
        pool = catalog.pool_of(pool_id)
        encoding = catalog.rank_by(pool, "").encoding
        assert encoding
        encoding.follow(catalog.store, pool.row.seq)
        return read

    monkeypatch.setattr(RowMemory, "get", delete_then)
    assert len(found(catalog, retriever, k=5, selection=selection, considered=20)) == 5


def test_requests_that_come_together_after_a_write_read_the_words_once(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Slow(Lexical):
        def __init__(self, store: Store, pool_id: int, seq: int) -> None:
            made.append(seq)
            time.sleep(0.1)
            super().__init__(store, pool_id, seq)

    monkeypatch.setattr("serving.catalog.Lexical", Slow)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: found(catalog, "hybrid", k=8), range(8)))
    assert len(made) == 1
    assert all(answer == answers[0] for answer in answers)
