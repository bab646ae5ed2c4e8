"""Which encodings a pool keeps, through switches, roll-backs and retrievers that come, change and go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from serving.batching import EncodingWorker
from serving.catalog import Catalog, Pool
from serving.retrievers import PoolEncoder
from serving.sql.jobs import Jobs, Step
from serving.sql.rows import EncodingRow
from serving.sql.store import Store
from udr.errors import ConflictError, UnknownNameError
from udr.fakes import FakeEncoder
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

SPEC = TaskSpec(name="p", family="custom", kind="generation", metric="rouge_l")


class Shelf:
    """Retrievers by name, each in some version; replaced ones make other vectors."""

    def __init__(self, **versions: int) -> None:
        self.versions = versions

    @property
    def names(self) -> list[str]:
        return list(self.versions)

    def open(
        self,
        name: str,
        spec: TaskSpec,
        sample: Sequence[Demonstration],
        weights: Sequence[float] | None = None,
        fingerprint: str = "",
    ) -> tuple[PoolEncoder, None]:
        if name not in self.versions:
            raise UnknownNameError("retriever", name, self.versions)
        return PoolEncoder(FakeEncoder(self.versions[name]), spec, inputs_only=True), None

    def has(self, row: EncodingRow) -> bool:
        return row.retriever in self.versions and row.dim == self.versions[row.retriever]


@pytest.fixture
def worker() -> Iterator[EncodingWorker]:
    opened = EncodingWorker()
    yield opened
    opened.close()


def process(store: Store, shelf: Shelf, worker: EncodingWorker) -> Catalog:
    return Catalog(store, shelf, worker)  # type: ignore[arg-type]


def demonstration(i: int) -> Demonstration:
    return Demonstration(str(i), f"text {i}", "y")


def kept(store: Store, pool: Pool) -> set[int]:
    row = store.pool_of(pool.row.id)
    return {number for number in (row.active, row.previous) if number}


def test_the_encodings_that_answer_and_answered_are_kept_whole_and_no_others(
    store: Store, worker: EncodingWorker
) -> None:
    rng = np.random.default_rng(3)
    shelf = Shelf(a=8, b=9, c=10)
    catalog = process(store, shelf, worker)
    seen = [catalog.create(SPEC)]
    active = previous = None
    for step in range(150):
        now = catalog.pool("p", fresh=True)
        pool = seen[rng.integers(len(seen))] if rng.random() < 0.3 else now  # others looked it up some time ago
        by_id = {row.id: row for row in store.encodings(now.row.id)}
        name = str(rng.choice(["a", "b", "c"]))
        match rng.choice(["switch", "back", "write", "complete", "replace", "remove", "restart"]):
            case "switch" if name in shelf.versions:
                catalog.become(pool, name)
                if not (active and by_id[active].retriever == name and shelf.has(by_id[active])):
                    active, previous = store.pool_of(now.row.id).active, active
            case "back":
                try:
                    catalog.roll_back(pool)
                except (ConflictError, UnknownNameError):
                    assert pool is not now or not previous or not shelf.has(by_id[previous])
                else:
                    target = pool.row.previous
                    active, previous = (target, active) if target != active else (active, previous)
            case "write" | "complete" as what:
                try:
                    if what == "write":
                        catalog.write(pool, [demonstration(step)])
                    else:
                        catalog.complete(pool, lambda *_: None)
                except (ConflictError, UnknownNameError):
                    assert pool is not now or (active and not shelf.has(by_id[active]))
                else:
                    lost = previous and not shelf.has(by_id[previous])
                    if lost and (pool is now or not store.pool_of(now.row.id).previous):  # old news may not tell of it
                        previous = None
            case "replace" if name in shelf.versions:
                shelf.versions[name] += 3
                catalog = process(store, shelf, worker)
            case "remove":
                shelf.versions.pop(name, None)
                catalog = process(store, shelf, worker)
            case _:
                shelf.versions |= {n: int(rng.integers(8, 40)) for n in "abc" if n not in shelf.versions}
                catalog = process(store, shelf, worker)
        row = store.pool_of(now.row.id)
        assert (row.active, row.previous) == (active, previous)
        assert {e.id for e in store.encodings(row.id)} == kept(store, now)
        for number in kept(store, now):
            assert not store.unencoded(row.id, number, 0, 1)
        seen.append(catalog.pool_of(row.id))


def test_what_a_roll_back_needs_outlives_the_loss_of_an_older_retriever(store: Store, worker: EncodingWorker) -> None:
    shelf = Shelf(a=8, b=9)
    pool = process(store, shelf, worker).create(SPEC)
    process(store, shelf, worker).become(pool, "a")
    process(store, shelf, worker).become(pool, "b")
    catalog = process(store, shelf, worker)
    old = catalog.pool("p", fresh=True)
    catalog.roll_back(old)
    del shelf.versions["a"]
    process(store, shelf, worker)._kept(old)  # looked up before the roll-back
    row = catalog.pool("p", fresh=True).row
    assert (row.active, row.previous) == (old.row.previous, old.row.active)


def test_vectors_of_a_dropped_encoding_are_not_written(store: Store, worker: EncodingWorker) -> None:
    shelf = Shelf(a=8, b=9)
    catalog = process(store, shelf, worker)
    pool = catalog.create(SPEC)
    for name in ("a", "b"):
        catalog.become(pool, name)
    old = catalog.pool("p", fresh=True)
    assert len(catalog._kept(old)) == 2
    store.forget_previous(old.row.id, old.row.previous or 0)  # by another process
    assert catalog.write(old, [demonstration(1)]).created == 1
    with pytest.raises(ConflictError, match="ask again"):
        store.activate(old.row.id, old.row.previous or 0)


def test_a_load_goes_on_where_the_pool_is_switched_while_it_is_encoded(store: Store, worker: EncodingWorker) -> None:
    catalog = process(store, Shelf(a=8, b=9, c=10), worker)
    pool = catalog.create(SPEC)
    for name in ("a", "b"):
        catalog.become(pool, name)
    jobs = Jobs(store.database)
    job = jobs.create(pool.row.id, "load", {})
    assert jobs.claim("me")
    store.write(pool.row.id, [demonstration(1)], {}, step=Step(job.id, "me", 0, 0, 0))
    told: list[int] = []

    def tell(more: int, *_: object) -> None:
        told.append(more)
        if len(told) == 1:
            catalog.become(pool, "c")

    catalog.complete(catalog.pool_of(pool.row.id), tell)
    assert [row.retriever for row in store.encodings(pool.row.id)] == ["b", "c"]
    assert all(not store.unencoded(pool.row.id, number, 0, 1) for number in kept(store, pool))


def test_a_retriever_whose_files_were_replaced_answers_by_what_is_active(store: Store, worker: EncodingWorker) -> None:
    shelf = Shelf(a=8)
    process(store, shelf, worker).become(process(store, shelf, worker).create(SPEC), "a")
    shelf.versions["a"] = 9
    catalog = process(store, shelf, worker)
    catalog.become(catalog.pool("p", fresh=True), "a")
    pool = catalog.pool("p", fresh=True)
    ranking = catalog.rank_by(pool, "a")
    assert ranking.encoding is not None
    assert ranking.encoding.row.id == pool.row.active
