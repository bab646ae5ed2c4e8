"""The store against a plain map, and its migrations against its tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.exc import StatementError

import serving.sql.database
import serving.sql.store
from serving.sql.database import open_database
from serving.sql.rows import Stored
from serving.sql.store import Store
from serving.sql.tables import metadata
from udr.errors import ConflictError, NotFoundError, StoreUnavailable
from udr.live_index import LiveIndex
from udr.types import Demonstration, FloatArray, Media

DIM = 4


def vector_of(d: Demonstration) -> FloatArray:
    rng = np.random.default_rng(int(d.content_hash, 16) % 2**32)
    return rng.standard_normal(DIM).astype(np.float32)


@pytest.mark.filterwarnings("ignore:Did not recognize type 'vector'")
def test_the_migrations_make_what_the_tables_say(store: Store) -> None:
    with store.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.filterwarnings("ignore:Did not recognize type 'vector'")
def test_the_migrations_go_down_and_up_again(store: Store) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(serving.sql.database.__file__).parent / "migrations"))
    with store.database.engine.execution_options(udr_writing=True).connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
        command.upgrade(config, "head")
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_it_answers_as_a_plain_map_does_and_indexes_follow(store: Store) -> None:
    compare_with_a_map(store, 400)


@pytest.mark.slow
def test_it_answers_as_a_plain_map_does_through_twenty_thousand_operations(store: Store) -> None:
    compare_with_a_map(store, 20_000)


def compare_with_a_map(store: Store, steps: int) -> None:
    rng = np.random.default_rng(steps)
    pools = [store.create_pool(name, {}).id for name in ("a", "b")]
    encodings = {p: store.open_encoding(p, "r", "f", DIM).id for p in pools}
    model: dict[int, dict[str, Demonstration]] = {p: {} for p in pools}
    indexes = {p: (LiveIndex(DIM, "f"), [0]) for p in pools}
    for step in range(steps):
        p = int(rng.choice(pools))
        keys = [f"k{i}" for i in rng.choice(40, size=int(rng.integers(1, 6)), replace=False)]
        own = [Demonstration(k, f"text {rng.integers(3)}", str(rng.integers(2)), metadata={"s": k}) for k in keys]
        matrix = np.stack([vector_of(d) for d in own])
        if rng.random() < 0.3:
            assert store.delete(p, keys) == len([k for k in keys if model[p].pop(k, None)])
        elif rng.random() < 0.2:
            store.write(p, own, {encodings[p]: matrix}, clash="skip")
            model[p] |= {d.id: d for d in own if d.id not in model[p]}
        elif rng.random() < 0.5:
            clash = any(k in model[p] and model[p][k] != d for k, d in zip(keys, own, strict=True))
            if clash:
                with pytest.raises(ConflictError):
                    store.write(p, own, {encodings[p]: matrix})
            else:
                store.write(p, own, {encodings[p]: matrix})
                model[p] |= {d.id: d for d in own}
        else:
            written = store.write(p, own, {encodings[p]: matrix}, clash="replace")
            same = sum(model[p].get(d.id) == d for d in own)
            new = sum(d.id not in model[p] for d in own)
            assert written[:3] == (new, len(own) - new - same, same)
            model[p] |= {d.id: d for d in own}
        if step % 7 == 0:
            check(store, p, encodings[p], model[p], *indexes[p])
    for p in pools:
        check(store, p, encodings[p], model[p], *indexes[p])


def check(
    store: Store, p: int, encoding: int, model: dict[str, Demonstration], index: LiveIndex, seq: list[int]
) -> None:
    """Rows, vectors and an index that followed the changes are all the model's."""
    rows = store.page(p)
    assert {s.demonstration.id: s.demonstration for s in rows} == model
    assert store.pool_of(p).size == len(model)
    changes = store.changes(p, encoding, DIM, seq[0])
    index.add(changes.rows, changes.vectors, changes.metadata)
    index.remove(changes.gone)
    seq[0] = changes.seq
    assert len(index) == len(model)
    if rows:
        np.testing.assert_array_equal(
            index.vectors([s.row for s in rows]), np.stack([vector_of(s.demonstration) for s in rows])
        )


def test_an_encoding_becomes_active_only_when_nothing_is_missing(store: Store) -> None:
    p = store.create_pool("a", {})
    own = [Demonstration(str(i), f"t{i}", "y") for i in range(5)]
    store.write(p.id, own, {})
    encoding = store.open_encoding(p.id, "r", "f", DIM).id
    assert not store.activate(p.id, encoding)
    assert store.pool("a").active is None
    missing = store.unencoded(p.id, encoding, 0, 10)
    assert [s.demonstration for s in missing] == own
    store.delete(p.id, ["0"])  # one goes away while it is being encoded
    rows, vectors = [s.row for s in missing], np.ones((5, DIM), np.float32)
    store.add_vectors(p.id, encoding, rows, vectors)
    store.add_vectors(p.id, encoding, rows, vectors)  # by a second process that had the same idea
    assert store.activate(p.id, encoding)
    assert store.pool("a").active == encoding
    assert store.changes(p.id, encoding, DIM, 0).rows == rows[1:]


def test_media_are_read_where_they_are_wanted_and_some_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    p = store.create_pool("a", {}).id
    own = [Demonstration(str(i), f"t{i}", "y", media=(Media("image", "u" * (i % 2) * 500),)) for i in range(9)]
    store.write(p, own, {})
    monkeypatch.setattr(serving.sql.store, "_MEDIA", 900)
    for read in (store.page, lambda p, after=0: store.unencoded(p, 1, after, 1000)):
        found: list[Stored] = []
        while page := read(p, found[-1].row if found else 0):
            assert len(page) <= 4
            found += page
        assert [s.demonstration for s in found] == own
    assert [s.demonstration for s in store.texts(p)] == [dataclasses.replace(d, media=()) for d in own]
    light, behind = store.light(p, 0, 8, 100)
    assert [s.demonstration for s in light] == own[:8:2]
    assert store.light(p, behind, 8, 100)[0][0].demonstration == own[8]
    assert store.light(p, behind + 1, 8, 100) == ([], 0)


def test_a_row_number_is_never_used_again(store: Store) -> None:
    p = store.create_pool("a", {}).id
    seen: set[int] = set()
    for _ in range(5):
        store.write(p, [Demonstration("k", "t", "y")], {})
        (stored,) = store.page(p)
        assert stored.row not in seen
        seen.add(stored.row)
        store.delete(p, ["k"])


def test_a_pool_goes_with_all_that_is_its_own(store: Store) -> None:
    p = store.create_pool("a", {}).id
    encoding = store.open_encoding(p, "r", "f", DIM).id
    store.write(p, [Demonstration("k", "t", "y")], {encoding: np.ones((1, DIM), np.float32)})
    with pytest.raises(ConflictError, match="'a' exists"):
        store.create_pool("a", {})
    store.delete_pool(p)
    with pytest.raises(NotFoundError):
        store.pool("a")
    with pytest.raises(NotFoundError):
        store.write(p, [Demonstration("k", "t", "y")], {})
    assert store.create_pool("a", {}).id != p
    with store.database.engine.connect() as connection:
        assert not connection.exec_driver_sql("SELECT count(*) FROM embedding").scalar_one()


@pytest.mark.parametrize("value", ["\ud800", 2**64])
def test_nothing_is_written_that_cannot_be_read_again(store: Store, value: object) -> None:
    with pytest.raises((StatementError, TypeError)):  # drivers differ
        store.create_pool("a", {"value": value})
    assert store.every_pool() == []


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_bytes(b"this is not a database, whatever its name may say" * 50)
    with pytest.raises(StoreUnavailable, match="not a database"):
        open_database(f"sqlite:///{tmp_path}/s.sqlite")
