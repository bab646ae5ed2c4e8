"""Keys, roles, other tenants' pools, rates and the log of changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

import serving.access
from serving.access import parse_hosts
from serving.app import create_app, serve
from serving.settings import Settings
from serving.sql.database import open_database
from serving.sql.keys import Keys
from serving.sql.tables import job
from tests.serving.tools import finished, refused
from udr.errors import ConfigError

ADMIN = {"authorization": "Bearer boss"}
ROW = {"demonstrations": [{"id": "1", "input": "a", "output": "b"}]}


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"key": "boss"}))) as client:
        for name in ("a", "b"):
            assert client.post("/v1/pools", json={"name": name}, headers=ADMIN).status_code == 201
        yield client


def key(client: TestClient, name: str, **more: Any) -> dict[str, str]:
    made = client.post("/v1/keys", json={"name": name, **more}, headers=ADMIN)
    assert made.status_code == 201, made.text
    return {"authorization": f"Bearer {made.json()['key']}"}


def test_each_role_may_do_its_part(client: TestClient) -> None:
    reader, writer = key(client, "reader"), key(client, "writer", role="write")
    asked = {"pool": "a", "queries": ["a"]}
    for headers in (reader, writer, ADMIN):
        assert client.post("/v1/retrieve", json=asked, headers=headers).status_code == 200
    refused(client.post("/v1/pools/a/demonstrations", json=ROW, headers=reader), 403, "needs write")
    refused(client.put("/v1/pools/a/demonstrations/1", json=ROW["demonstrations"][0], headers=reader), 403, "write")
    refused(client.delete("/v1/pools/a/demonstrations/1", headers=reader), 403, "write")
    refused(client.post("/v1/pools/a/load", headers=reader), 403, "write")
    refused(client.put("/v1/pools/a/retriever", json={"retriever": "dense"}, headers=reader), 403, "write")
    assert client.post("/v1/pools/a/demonstrations", json=ROW, headers=writer).status_code == 201
    refused(client.delete("/v1/pools/a", headers=writer), 403, "admin")
    refused(client.post("/v1/pools", json={"name": "c"}, headers=writer), 403, "admin")
    for place in ("/v1/keys", "/v1/audit"):
        refused(client.get(place, headers=writer), 403, "admin")
    refused(client.post("/v1/keys", json={"name": "x", "role": "admin"}, headers=writer), 403, "admin")


def test_other_tenants_pools_are_not_there(client: TestClient) -> None:
    own = key(client, "tenant", role="write", pools=["a"])
    assert [p["name"] for p in client.get("/v1/pools", headers=own).json()["pools"]] == ["a"]
    loaded = client.post(
        "/v1/pools/b/load", content=b"", headers={**ADMIN, "content-type": "application/x-ndjson"}
    ).json()
    answers = [
        client.get("/v1/pools/b", headers=own),
        client.get("/v1/pools/b/export", headers=own),
        client.get("/v1/pools/b/demonstrations/1", headers=own),
        client.post("/v1/pools/b/demonstrations", json=ROW, headers=own),
        client.post("/v1/retrieve", json={"pool": "b", "queries": ["a"]}, headers=own),
        client.post("/v1/prompt", json={"pool": "b", "queries": ["a"]}, headers=own),
        client.get(f"/v1/jobs/{loaded['id']}", headers=own),
        client.delete(f"/v1/jobs/{loaded['id']}", headers=own),
    ]
    for answer in answers:
        refused(answer, 404, "no ")
    # a pool that is hidden and one that is not there read alike
    hidden = client.get("/v1/pools/b", headers=own).json()["detail"]
    assert hidden.replace("'b'", "'zzz'") == client.get("/v1/pools/zzz", headers=own).json()["detail"]


def test_a_key_for_some_pools_is_no_administrators(client: TestClient) -> None:
    asked = {"name": "x", "role": "admin", "pools": ["a"]}
    refused(client.post("/v1/keys", json=asked, headers=ADMIN), 422, "role write")


def test_a_key_that_expired_or_was_revoked_opens_nothing(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.access, "_REMEMBERED", 0.0)
    own = key(client, "short")
    assert client.get("/v1/pools", headers=own).status_code == 200
    assert client.delete("/v1/keys/short", headers=ADMIN).status_code == 204
    refused(client.get("/v1/pools", headers=own), 401, "Bearer")
    refused(client.delete("/v1/keys/short", headers=ADMIN), 404, "'short'")
    database = open_database(settings.database)
    _, secret = Keys(database).create("old", "admin", expires=time.time() - 1)
    database.close()
    refused(client.get("/v1/pools", headers={"authorization": f"Bearer {secret}"}), 401, "Bearer")
    for wrong in ("Bearer", "Bearer ", "Basic boss", "Bearer udr_guess", "boss", "Bearer bös"):
        refused(client.get("/v1/pools", headers={"authorization": wrong.encode()}), 401, "Bearer")


def test_secrets_are_shown_once_and_stored_nowhere(client: TestClient, settings: Settings) -> None:
    secret = key(client, "mine")["authorization"].split()[1]
    assert secret not in client.get("/v1/keys", headers=ADMIN).text
    assert secret not in client.get("/v1/audit", headers=ADMIN).text
    database = open_database(settings.database)
    with database.read() as c:
        assert secret not in str(c.exec_driver_sql("SELECT * FROM api_key").all())
    database.close()
    refused(client.post("/v1/keys", json={"name": "mine"}, headers=ADMIN), 409, "'mine'")


def test_changes_are_logged_with_who_made_them(client: TestClient) -> None:
    writer = key(client, "writer", role="write")
    client.post("/v1/pools/a/demonstrations", json=ROW, headers=writer)
    client.delete("/v1/pools/a/demonstrations/1", headers=writer)
    client.delete("/v1/pools/b", headers=ADMIN)
    changes = client.get("/v1/audit", headers=ADMIN).json()["changes"]
    assert [(c["caller"], c["action"], c["pool"]) for c in changes[:4]] == [
        ("admin", "pool.delete", "b"),
        ("writer", "demonstrations.delete", "a"),
        ("writer", "demonstrations.write", "a"),
        ("admin", "key.create", None),
    ]
    pages, cursor = [], ""
    while cursor is not None:
        page = client.get("/v1/audit", params={"limit": 2, "cursor": cursor}, headers=ADMIN).json()
        pages += page["changes"]
        cursor = page["next"]
    assert pages == changes
    assert {c["pool"] for c in client.get("/v1/audit", params={"pool": "a"}, headers=ADMIN).json()["changes"]} == {"a"}


def test_jobs_are_logged_with_who_asked_for_them(client: TestClient) -> None:
    writer = key(client, "writer", role="write")
    kind = {"content-type": "application/x-ndjson", "idempotency-key": "once"}
    line = b'{"id": "1", "input": "a", "output": "b"}'
    for _ in range(2):  # sent again, and done once
        loaded = client.post("/v1/pools/a/load", content=line, headers=writer | kind)
    switched = client.put("/v1/pools/a/retriever", json={"retriever": "dense"}, headers=ADMIN)
    client.headers.update(ADMIN)
    load, switch = finished(client, loaded)["id"], finished(client, switched)["id"]
    with client.app.state.parts.database.write() as c:  # type: ignore[attr-defined]
        c.execute(sa.update(job).where(job.c.id == load).values(state="running", finished=None))
    assert client.delete(f"/v1/jobs/{load}").status_code == 200
    changes = client.get("/v1/audit", params={"pool": "a"}).json()["changes"]
    assert [(c["caller"], c["action"], c["details"]["job"]) for c in changes if c["action"].startswith("job.")] == [
        ("admin", "job.cancel", load),
        ("admin", "job.switch", switch),
        ("writer", "job.load", load),
    ]


def test_a_switch_is_logged_as_its_callers(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"key": "boss", "encoder": "none"}))) as client:
        assert client.post("/v1/pools", json={"name": "a"}, headers=ADMIN).status_code == 201
    with TestClient(create_app(settings.model_copy(update={"key": "boss"}))) as client:
        writer = key(client, "writer", role="write")
        begun = client.put("/v1/pools/a/retriever", json={"retriever": "dense"}, headers=writer)
        client.headers.update(ADMIN)
        finished(client, begun)
        switch = client.get("/v1/audit", params={"pool": "a"}).json()["changes"][0]
        assert (switch["caller"], switch["action"]) == ("writer", "pool.switch")


def test_metrics_are_for_keys_of_all_pools_and_told_under_overload(client: TestClient, settings: Settings) -> None:
    reader, tenant = key(client, "reader"), key(client, "tenant", pools=["a"])
    refused(client.get("/metrics", headers=tenant), 403, "some pools")
    with TestClient(create_app(settings.model_copy(update={"key": "boss", "max_in_flight": 0}))) as full:
        refused(full.get("/v1/pools", headers=reader), 429, "being worked on")
        assert full.get("/metrics", headers=reader).status_code == 200


def test_a_key_that_is_asked_for_again_is_not_made_twice(client: TestClient) -> None:
    """Its answer is not kept, for it holds the secret."""
    once = ADMIN | {"idempotency-key": "once"}
    assert client.post("/v1/keys", json={"name": "mine"}, headers=once).status_code == 201
    refused(client.post("/v1/keys", json={"name": "mine"}, headers=once), 409, "'mine'")


def test_a_caller_is_slowed_down_and_others_are_not(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"key": "boss", "rate": "3/hour"}))) as client:
        own = key(client, "busy")
        for _ in range(3):
            assert client.get("/v1/pools", headers=own).status_code == 200
        answer = client.get("/v1/pools", headers=own)
        refused(answer, 429, "too many")
        assert 0 < int(answer.headers["retry-after"]) <= 3600
        assert client.get("/v1/pools", headers=ADMIN).status_code == 200
        assert client.get("/livez").status_code == 200
    with (
        pytest.raises(ConfigError, match="100/second"),
        TestClient(create_app(settings.model_copy(update={"rate": "often"}))),
    ):
        pass


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_others_could_reach_ends_before_it_starts_if_it_has_no_key(
    workers: int, settings: Settings
) -> None:
    with pytest.raises(ConfigError, match="set UDR_KEY"):
        serve(settings.model_copy(update={"host": "0.0.0.0", "port": 0, "workers": workers}))


@pytest.fixture
def open_door(settings: Settings) -> Iterator[TestClient]:
    own = settings.model_copy(update={"hosts": "udr.example, [fd00::5]"})
    with TestClient(create_app(own), base_url="http://127.0.0.1:8000") as client:
        assert client.post("/v1/pools", json={"name": "open"}).status_code == 201
        yield client


def test_without_a_key_only_names_of_this_machine_are_answered(open_door: TestClient, client: TestClient) -> None:
    """A page whose name was made to lead to loopback sends that name, whatever it asks for."""
    ours = ("localhost:8000", "LOCALHOST", "127.0.0.1", "127.8.8.8:80", "[::1]:8000", "udr.example:99", "[fd00::5]:1")
    for host in ours:
        assert open_door.get("/v1/pools", headers={"host": host}).status_code == 200, host
    others = (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "0.0.0.0:8000",
        "a@127.0.0.1",
        "[::1",
        "",
        "b\xf6s",
    )
    for host in others:
        for path in ("/v1/pools", "/v1/pools/open/export", "/metrics", "/openapi.json"):
            refused(open_door.get(path, headers={"host": host.encode("latin-1")}), 403, "UDR_HOSTS")
    assert open_door.get("/livez", headers={"host": "evil.example"}).status_code == 200
    assert client.get("/v1/pools", headers={**ADMIN, "host": "evil.example"}).status_code == 200


def test_without_a_key_no_page_of_another_site_changes_anything(open_door: TestClient, client: TestClient) -> None:
    new = {"id": "1", "input": "a", "output": "b"}
    others = ("https://evil.example", "null", "", "http://127.0.0.1:3000", "http://localhost:8000", "file://")
    for origin in others:
        told = {"origin": origin}
        refused(open_door.post("/v1/pools/open/demonstrations", json=ROW, headers=told), 403, "another site")
        refused(open_door.put("/v1/pools/open/demonstrations/1", json=new, headers=told), 403, "another site")
        refused(open_door.delete("/v1/pools/open", headers=told), 403, "another site")
        assert open_door.get("/v1/pools", headers=told).status_code == 200  # which no browser hands to that page
    assert open_door.get("/v1/pools/open").json()["demonstrations"] == 0
    for told in ({}, {"origin": "http://127.0.0.1:8000"}, {"origin": "https://udr.example"}):
        assert open_door.put("/v1/pools/open/demonstrations/1", json=new, headers=told).status_code == 200
    told = {**ADMIN, "origin": "https://evil.example"}
    assert client.put("/v1/pools/open/demonstrations/1", json=new, headers=told).status_code == 200


@pytest.mark.parametrize("text", ["http://udr.example", "udr.example:80", "a b", "udr.example/x"])
def test_hosts_are_names_alone(text: str) -> None:
    with pytest.raises(ConfigError, match="without ports"):
        parse_hosts(text)
    assert parse_hosts(" UDR.example,,[::2]") == {"udr.example", "::2"}
