"""The README's way of saving a PostgreSQL database and of putting it back, over a real server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings
from tests.serving.postgres import PostgresServer

README = (Path(__file__).parent.parent.parent / "docker" / "README.md").read_text(encoding="utf-8")
# of lines like: docker compose … exec -T postgres pg_dump … > FILE
COMMANDS = re.findall(r"exec -T postgres (pg_\w+) ([^<>\n]+?) [<>] \S+", README)
ROWS = [{"id": f"d{i}", "input": f"how many legs have {i} spiders", "output": str(8 * i)} for i in range(20)]


def filled(client: TestClient) -> str:
    client.post("/v1/pools", json={"name": "legs"}).raise_for_status()
    client.post("/v1/pools/legs/demonstrations", json={"demonstrations": ROWS}).raise_for_status()
    return state(client)


def state(client: TestClient) -> str:
    """The pool, and what is nearest to a query in it."""
    asked = {"pool": "legs", "queries": ["how many legs have 3 spiders"], "k": 5}
    return client.get("/v1/pools/legs/export").text + client.post("/v1/retrieve", json=asked).text


@pytest.mark.postgres
def test_what_pg_dump_saved_is_there_again(postgres: PostgresServer, tmp_path: Path) -> None:
    (dump, dumping), (restore, restoring) = COMMANDS
    assert (dump, restore) == ("pg_dump", "pg_restore")
    settings = Settings(database=postgres.database("udr"), encoder="fake", cache=str(tmp_path))
    with TestClient(create_app(settings)) as client:
        before = filled(client)
        saved = postgres.run(dump, *shlex.split(dumping))
        client.delete("/v1/pools/legs/demonstrations/d3").raise_for_status()
        client.post("/v1/pools", json={"name": "later"}).raise_for_status()
        assert state(client) != before
    postgres.run(restore, *shlex.split(restoring), given=saved)  # the service is stopped
    with TestClient(create_app(settings)) as client:
        assert state(client) == before
        assert client.get("/v1/pools/later").status_code == 404
        client.delete("/v1/pools/legs").raise_for_status()  # and it can be written to
