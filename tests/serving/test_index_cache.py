"""Large indexes on disk: what the store holds is what is found, whatever became of the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

import serving.pool_index
from serving.app import build_parts, close_parts
from serving.catalog import Catalog
from serving.choosing import Search
from serving.settings import Settings
from serving.sql.tables import saved_index
from udr import live_index
from udr.errors import ArtifactError
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Query

SPEC = TaskSpec(name="p", family="custom", kind="generation", metric="rouge_l")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.pool_index, "_WORTH", 1)
    monkeypatch.setattr(live_index, "_GRAPH", 300)
    monkeypatch.setattr(live_index, "_MERGED", 200)


@pytest.fixture
def cached(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"cache": str(tmp_path / "indexes")})


@contextmanager
def opened(settings: Settings) -> Iterator[Catalog]:
    parts = build_parts(settings)
    try:
        yield parts.catalog
    finally:
        close_parts(parts)


def rows(first: int, n: int) -> list[Demonstration]:
    return [Demonstration(f"r{i}", f"word{i % 17} text {i}", "y") for i in range(first, first + n)]


def found(catalog: Catalog) -> set[str]:
    pool = catalog.pool("p")
    ranking = catalog.rank_by(pool, "")
    assert ranking.encoding is not None
    queries = [Query("q", "text")]
    vectors = ranking.encoding.encoder.encode_queries(queries)
    (answer,) = catalog.retrieve(pool, ranking, queries, vectors, Search(1000))
    return {f.demonstration.id for f in answer.found}


def fill(settings: Settings) -> None:
    with opened(settings) as catalog:
        pool = catalog.create(SPEC)
        for first in range(0, 600, 150):
            catalog.write(pool, rows(first, 150))
        assert len(found(catalog)) == 600
        catalog.tend(1)


def test_an_index_is_read_and_brought_up_to_date(cached: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cached)
    with opened(cached.model_copy(update={"cache": ""})) as catalog:  # another process, which keeps none
        catalog.write(catalog.pool("p"), rows(600, 10))
        catalog.store.delete(catalog.pool("p").row.id, ["r0", "r1"])
    with opened(cached) as catalog:
        asked = []
        changes = catalog.store.changes
        monkeypatch.setattr(catalog.store, "changes", lambda *a: asked.append(a[3]) or changes(*a))
        assert found(catalog) == {f"r{i}" for i in range(2, 610)}
        assert min(asked) > 0
        (encoding,) = catalog._dense.values()
        assert encoding.index.in_graphs


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def flipped_byte(folder: Path) -> None:
    file = max(folder.glob("*.faiss"), key=lambda f: f.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def cut_short(folder: Path) -> None:
    file = next(folder.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [no_manifest, flipped_byte, cut_short])
def test_damaged_files_are_refused_and_made_anew(cached: Settings, damage: Callable[[Path], None]) -> None:
    fill(cached)
    (folder,) = Path(cached.cache).glob("encoding-*")
    damage(folder)
    with opened(cached) as catalog:
        assert len(found(catalog)) == 600
        catalog.tend(1)
    live_index.load_live_index(folder)


def test_an_index_of_another_time_or_database_is_refused(tmp_path: Path) -> None:
    """The database is put back to an older day, and goes on from there: numbers come twice."""
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake")
    fill(settings)
    shutil.copy(tmp_path / "udr.sqlite", tmp_path / "old")
    with opened(settings) as catalog:
        catalog.write(catalog.pool("p"), rows(600, 10))
        assert len(found(catalog)) == 610
        catalog.tend(1)
    shutil.copy(tmp_path / "old", tmp_path / "udr.sqlite")
    with opened(settings) as catalog:  # older than the index
        assert len(found(catalog)) == 600
    shutil.rmtree(tmp_path / "udr.sqlite.indexes")
    with opened(settings) as catalog:
        catalog.write(catalog.pool("p"), rows(600, 10))
        assert len(found(catalog)) == 610
    shutil.copy(tmp_path / "old", tmp_path / "udr.sqlite")
    with opened(settings.model_copy(update={"cache": str(tmp_path / "none")})) as catalog:
        catalog.write(catalog.pool("p"), rows(700, 4))
        catalog.write(catalog.pool("p"), rows(800, 4))
    with opened(settings) as catalog:  # as far as the index, by another way
        assert len(found(catalog)) == 608


def test_numbers_that_come_again_after_a_restore_take_no_index_for_another(tmp_path: Path) -> None:
    """As many rows with the same numbers as the index holds, and other texts."""
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake")
    fill(settings)
    shutil.copy(tmp_path / "udr.sqlite", tmp_path / "old")
    with opened(settings) as catalog:
        catalog.write(catalog.pool("p"), rows(600, 10))
        assert len(found(catalog)) == 610
        catalog.tend(1)
    shutil.copy(tmp_path / "old", tmp_path / "udr.sqlite")
    with opened(settings.model_copy(update={"cache": str(tmp_path / "none")})) as catalog:
        catalog.write(catalog.pool("p"), [Demonstration(f"n{i}", f"new {i}", "y") for i in range(10)])
    with opened(settings) as catalog:
        assert found(catalog) == {f"r{i}" for i in range(600)} | {f"n{i}" for i in range(10)}
        pool = catalog.pool("p")
        ranking = catalog.rank_by(pool, "")
        assert ranking.encoding is not None
        queries = [Query("q", "new 7 y")]
        vectors = ranking.encoding.encoder.encode_queries(queries)
        (answer,) = catalog.retrieve(pool, ranking, queries, vectors, Search(1))
        assert answer.found[0].demonstration.id == "n7"


def test_processes_that_share_a_folder_save_one_after_another(cached: Settings) -> None:
    fill(cached)
    with opened(cached) as one, opened(cached) as other:
        for step, catalog in enumerate([one, other, one, other]):
            catalog.write(catalog.pool("p"), rows(600 + step, 1))
            assert len(found(catalog)) == 601 + step
            catalog.tend(0)
    with opened(cached) as catalog:
        assert len(found(catalog)) == 604
        (encoding,) = catalog._dense.values()
        assert encoding._saved[0] > 0


def test_an_index_of_a_database_put_back_while_it_is_served_is_not_saved(cached: Settings) -> None:
    fill(cached)
    with opened(cached) as catalog:
        assert len(found(catalog)) == 600
        with catalog.store.database.write() as c:
            c.execute(sa.delete(saved_index))
        catalog.write(catalog.pool("p"), rows(600, 1))
        assert len(found(catalog)) == 601
        with pytest.raises(ArtifactError, match="put back"):
            catalog.tend(0)


def test_indexes_that_answer_no_more_are_removed(cached: Settings) -> None:
    fill(cached)
    with opened(cached) as catalog:
        catalog.delete(catalog.pool("p"))
    assert not list(Path(cached.cache).glob("encoding-*"))


def test_demonstrations_are_read_before_they_are_asked_for(cached: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cached)
    with opened(cached) as catalog:
        expected = found(catalog)
        catalog._rows._known.clear()
        catalog.tend(0)
        catalog.write(catalog.pool("p"), rows(600, 10))  # and those that come later
        catalog.tend(0)
        monkeypatch.setattr(catalog.store, "get", lambda *_: pytest.fail("read again"))
        assert found(catalog) == expected | {f"r{i}" for i in range(600, 610)}
