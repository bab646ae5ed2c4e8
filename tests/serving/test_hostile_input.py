"""What nobody should send: one clear line each; nothing is fetched or written elsewhere, and the service goes on."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings
from tests.serving.tools import finished

JSON, NDJSON = {"content-type": "application/json"}, "application/x-ndjson"


@pytest.fixture
def pool(client: TestClient) -> str:
    client.post("/v1/pools", json={"name": "p"})
    body = {"demonstrations": [{"id": "a", "input": "one fish", "output": "y"}]}
    assert client.post("/v1/pools/p/demonstrations", json=body).status_code == 201
    return "/v1/pools/p"


def one_line(answer: Any, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    assert "\n" not in answer.json()["detail"]


def test_queries_that_ask_for_a_million_demonstrations_are_refused(client: TestClient, pool: str) -> None:
    for path in ("/v1/retrieve", "/v1/prompt"):
        asked = {"pool": "p", "queries": ["x"] * 1000, "k": 1000}
        one_line(client.post(path, json=asked), 422)
        assert "at most 20000" in client.post(path, json=asked).json()["detail"]
        considered = {"pool": "p", "queries": ["x"] * 1000, "selection": "mmr", "considered": 1000}
        one_line(client.post(path, json=considered), 422)
        assert client.post(path, json=considered | {"considered": 100, "k": 2}).status_code == 200
    assert client.post("/v1/retrieve", json={"pool": "p", "queries": ["x"] * 20, "k": 1000}).status_code == 200


BODIES = {
    "open": b"[" * 200_000,
    "deep list": b'{"pool": "p", "queries": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"pool": "p", "where": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "digits": b'{"pool": "p", "queries": ["x"], "k": ' + b"9" * 10_000 + b"}",
    "1e400": b'{"pool": "p", "queries": ["x"], "k": 1e400}',
    "NaN": b'{"pool": "p", "queries": ["x"], "threshold": NaN}',
    "-1e999": b'{"pool": "p", "queries": ["x"], "threshold": -1e999}',
    "no UTF-8": b'{"pool": "p", "queries": ["\xff\xfe"]}',
    "surrogate": b'{"pool": "p", "queries": ["\\ud800"]}',
    "NUL": b'{"pool": "p", "queries": ["a\\u0000b"]}',
    "gzip": gzip.compress(b'{"pool": "p", "queries": ["' + b"x" * 5_000_000 + b'"]}'),
    "none": b"",
}


@pytest.mark.parametrize("raw", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_refused(client: TestClient, pool: str, raw: bytes) -> None:
    headers = {**JSON, "content-encoding": "gzip"} if raw[:2] == b"\x1f\x8b" else JSON
    one_line(client.post("/v1/retrieve", content=raw, headers=headers), 400, 422)
    assert client.get(pool).json()["demonstrations"] == 1


@pytest.mark.parametrize("name", ["../etc", "..", ".", "a/b", "a\\b", "a\x00b", "~", "C:", "x" * 1000, "a b", ""])
def test_a_name_that_could_be_a_path_is_no_pool(client: TestClient, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    one_line(client.post("/v1/pools", json={"name": name}), 422)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    ["/v1/pools/..%2f..%2fetc%2fpasswd", "/v1/jobs/..%2f..%2fx", "/v1/pools/%00", "/v1/pools?after=%00", "/..%2fetc"],
)
def test_a_path_that_leaves_the_service_leads_nowhere(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


@pytest.mark.parametrize("key", ["%01", "a%09b", "%7F", "x" * 513])
def test_an_id_with_control_characters_is_none(client: TestClient, pool: str, key: str) -> None:
    one_line(client.put(f"{pool}/demonstrations/{key}", json={"input": "a", "output": "b"}), 422)
    one_line(client.get(f"{pool}/demonstrations/{key}"), 422)
    one_line(client.delete(f"{pool}/demonstrations/{key}"), 422)


@pytest.mark.parametrize("key", [".", ".."])
def test_an_id_that_no_address_holds_is_none(client: TestClient, pool: str, key: str) -> None:
    row = {"id": key, "input": "a", "output": "b"}
    answer = client.post(f"{pool}/demonstrations", json={"demonstrations": [row]})
    one_line(answer, 422)
    assert "is no id" in answer.json()["detail"]
    loaded = client.post(f"{pool}/load", content=json.dumps(row), headers={"content-type": "application/x-ndjson"})
    assert "is no id" in finished(client, loaded)["errors"][0]["detail"]
    for other in ("...", ".a", "a/../b", "..a"):
        place = f"{pool}/demonstrations/{quote(other, safe='')}"
        assert client.put(place, json={"input": "a", "output": "b"}).status_code == 200
        assert client.get(place).json()["id"] == other


def test_an_address_with_a_slash_too_many_is_none_and_no_redirect(client: TestClient, pool: str) -> None:
    for method, path in (("POST", "/v1/pools/"), ("GET", f"{pool}/"), ("POST", "/v1/retrieve/")):
        answer = client.request(method, path, json={}, headers={"host": "localhost"}, follow_redirects=False)
        one_line(answer, 404)
        assert "location" not in answer.headers


@pytest.mark.parametrize("retriever", ["../../etc", "/etc/passwd", "http://127.0.0.1/x"])
def test_a_retriever_is_a_name_and_never_an_address(client: TestClient, pool: str, retriever: str) -> None:
    one_line(client.put(f"{pool}/retriever", json={"retriever": retriever}), 404, 422)
    one_line(client.post("/v1/retrieve", json={"pool": "p", "queries": ["x"], "retriever": retriever}), 404, 422)
    tokenizer = {"pool": "p", "queries": ["x"], "budget": 50, "tokenizer": retriever}
    one_line(client.post("/v1/prompt", json=tokenizer), 404, 422)


def test_the_address_of_a_medium_is_kept_and_not_fetched(
    client: TestClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the service opened a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    media = [{"kind": "image", "uri": "http://169.254.169.254/latest/meta-data"}]
    row = {"id": "m", "input": "a picture", "output": "y", "media": media}
    assert client.post(f"{pool}/demonstrations", json={"demonstrations": [row]}).status_code == 201
    assert client.get(f"{pool}/demonstrations/m").json()["media"] == media
    asked = {"pool": "p", "queries": [{"input": "a picture", "media": media}]}
    assert client.post("/v1/retrieve", json=asked).status_code == 200


def test_a_pickle_is_no_payload(client: TestClient, pool: str) -> None:
    pickled = b"\x80\x04\x95" + json.dumps({"input": "a"}).encode()
    one_line(
        client.post(f"{pool}/load", content=pickled, headers={"content-type": "application/octet-stream"}), 415, 422
    )


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/demonstrations/load", "/demonstrations/a/load", "/load", "/x/load"])
def test_only_a_load_may_have_a_large_body(settings: Settings, method: str, path: str) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_body": 100}))) as client:
        client.post("/v1/pools", json={"name": "p"})
        row = b'{"input": "%b", "output": "y"}' % (b"a" * 100)
        answer = client.request(method, f"/v1/pools/p{path}", content=row, headers={"content-type": NDJSON})
        if (method, path) == ("POST", "/load"):
            assert answer.status_code == 202
        else:
            one_line(answer, 413)


HALF = rb'"\ud800"'
NO_TEXTS = {
    "instruction": (b'{"name": "q", "task": {"instruction": %b}}', "task: Value error, instruction: "),
    "joiner": (b'{"name": "q", "task": {"template": {"joiner": %b}}}', "task: Value error, template: joiner: "),
    "word": (b'{"name": "q", "task": {"verbaliser": {"a": "b", "c": %b}}}', "task: Value error, verbaliser: c: "),
    "label": (b'{"name": "q", "task": {"verbaliser": {"a": "b", %b: "c"}}}', "task: Value error, verbaliser: "),
    "family": (b'{"name": "q", "task": {"family": %b}}', "task: Value error, family: "),
    "source": (b'{"name": "q", "task": {"source": {"columns": {%b: "a"}}}}', "task: Value error, source: columns: "),
    "front": (b'{"name": "q", "front": {"retriever": %b}}', "front.retriever: "),
    "condition": (b'{"name": "q", "front": {"where": {"a": {"in": [%b]}}}}', "front.where: Value error, a: in: 0: "),
    "name": (b'{"name": %b}', "name: "),
}


@pytest.mark.parametrize("text", [HALF, rb'"a\u0000"'], ids=["surrogate", "NUL"])
def test_what_no_database_keeps_is_refused_by_the_name_of_its_field(client: TestClient, pool: str, text: bytes) -> None:
    for raw, place in NO_TEXTS.values():
        answer = client.post("/v1/pools", content=raw.replace(b"%b", text), headers=JSON)
        one_line(answer, 422)
        assert f"body.{place}" in answer.json()["detail"], answer.text
    one_line(client.put(f"{pool}/front", content=b'{"tokenizer": %b}' % text, headers=JSON), 422)
    for row in (b'"output": %b', b'"output": "b", "choices": [%b]', b'"output": "b", "metadata": {"a": %b}'):
        body = b'{"input": "a", ' + row % text + b"}"
        one_line(client.put(f"{pool}/demonstrations/b", content=body, headers=JSON), 422)
    for path in ("/v1/retrieve", "/v1/prompt"):
        one_line(client.post(path, content=b'{"pool": %b, "queries": ["x"]}' % text, headers=JSON), 422)
    for name in ("q", "p"):  # nothing of it was kept, and what was there is read as before
        assert client.get(f"/v1/pools/{name}").status_code == (200 if name == "p" else 404)
    assert [p["name"] for p in client.get("/v1/pools").json()["pools"]] == ["p"]


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, 2**200])
def test_a_number_too_large_for_any_store_is_refused(client: TestClient, pool: str, number: int) -> None:
    asked = {"pool": "p", "queries": ["x"]}
    for field in ("k", "considered", "budget", "reserve"):
        one_line(client.post("/v1/prompt", json={**asked, field: number}), 422)
        one_line(client.put(f"{pool}/front", json={field: number}), 422)
    for field in ("max_new_tokens", "train_cap"):
        one_line(client.post("/v1/pools", json={"name": "q", "task": {field: number}}), 422)
    if number > 2**64 - 1:
        one_line(client.put(f"{pool}/front", json={"where": {"a": number}}), 422)
    assert client.get(pool).json()["front"] is None
