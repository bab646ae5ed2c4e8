"""A pool on its way to another retriever."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

import serving.filling
from serving.app import create_app
from serving.retrievers import PoolEncoder
from serving.settings import Settings
from tests.serving.tools import finished, refused
from udr.encoder import build_encoder
from udr.errors import DataError
from udr.fakes import FakeEncoder
from udr.mixture import MixedEncoder
from udr.retriever import save_task
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray

ROWS = [{"id": str(i), "input": f"ticket {i} of the bank", "output": "login"} for i in range(300)]


@pytest.fixture
def trained(tmp_path: Path, bert_folder: Path) -> Path:
    """A retriever folder with one task of its own, `films`; other tasks are new to it."""
    folder = tmp_path / "retriever"
    write_retriever(folder, bert_folder)
    return folder


def write_retriever(folder: Path, bert_folder: Path, noise: float = 0) -> None:
    """As `udr index` does: what was there is removed before."""
    shutil.rmtree(folder, ignore_errors=True)
    encoder = build_encoder(str(bert_folder), device="cpu")
    encoder.save(folder / "untrained")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in encoder.parameters():
            weights.add_(noise * torch.randn_like(weights))
    encoder.save(folder / "encoder")
    spec = TaskSpec(name="films", family="custom", kind="generation", metric="rouge_l")
    save_task(folder, spec, [Demonstration("1", "the film was a joy", "great")], encoder)


@pytest.fixture
def both(settings: Settings, trained: Path) -> Settings:
    return settings.model_copy(update={"retrievers": {"mine": str(trained)}})


@pytest.fixture
def client(both: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(both)) as client:
        yield client


def retrieve(client: TestClient, pool: str, query: str, **more: Any) -> list[str]:
    answer = client.post("/v1/retrieve", json={"pool": pool, "queries": [query], **more})
    assert answer.status_code == 200, answer.text
    return [d["id"] for d in answer.json()["results"][0]["demonstrations"]]


def fill(client: TestClient, name: str, rows: Sequence[dict[str, str]] = ROWS) -> None:
    assert client.post("/v1/pools", json={"name": name}).status_code == 201
    assert client.post(f"/v1/pools/{name}/demonstrations", json={"demonstrations": rows}).status_code == 201


@pytest.mark.parametrize("name", ["tickets", "films"])
def test_a_pool_is_switched_to_a_trained_retriever_and_back(client: TestClient, name: str) -> None:
    fill(client, name)
    place = f"/v1/pools/{name}"
    before = retrieve(client, name, "ticket 7 of", k=5)
    refused(client.post("/v1/retrieve", json={"pool": name, "queries": ["a"], "retriever": "mine"}), 409, "PUT")
    begun = client.put(f"{place}/retriever", json={"retriever": "mine"})
    while client.get(place).json()["switch"]["state"] in ("queued", "running"):  # nothing stands still meanwhile
        assert retrieve(client, name, "ticket 7 of", k=5)
        new = {"id": f"n{time.monotonic_ns()}", "input": "a film", "output": "x"}
        assert client.post(f"{place}/demonstrations", json={"demonstrations": [new]}).status_code == 201
    finished(client, begun)
    described = client.get(place).json()
    assert (described["retriever"], described["previous_retriever"]) == ("mine", "dense")
    new = {"id": "late", "input": "a late film", "output": "x"}
    assert client.post(f"{place}/demonstrations", json={"demonstrations": [new]}).status_code == 201
    every = client.get(place).json()["demonstrations"]
    for retriever in ("mine", "dense", "hybrid", "bm25"):
        assert len(retrieve(client, name, "ticket 7 of", k=1000, retriever=retriever)) == every
    back = client.post(f"{place}/retriever/rollback")
    assert back.json()["retriever"] == "dense"
    assert retrieve(client, name, "ticket 7 of", k=5) == before
    assert len(retrieve(client, name, "ticket 7 of", k=1000)) == every
    refused(client.put(f"{place}/retriever", json={"retriever": "min"}), 422, "mine")


@pytest.mark.parametrize("name", ["tickets", "films"])
def test_a_folder_that_was_written_anew_is_switched_to_under_its_name(
    client: TestClient, both: Settings, trained: Path, bert_folder: Path, name: str
) -> None:
    fill(client, name)
    place, asked = f"/v1/pools/{name}", {"pool": name, "queries": ["ticket 7 of"], "k": 10}

    def answers(client: TestClient) -> tuple[str, Any]:
        answer = client.post("/v1/retrieve", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["fingerprint"], answer.json()["results"]

    finished(client, client.put(f"{place}/retriever", json={"retriever": "mine"}))
    with TestClient(create_app(both)) as other:
        before = answers(client)
        assert answers(other) == before
        write_retriever(trained, bert_folder, 0.1)
        assert answers(client) == answers(other) == before
        seen = []
        begun = client.put(f"{place}/retriever", json={"retriever": "mine"})
        while client.get(place).json()["switch"]["state"] in ("queued", "running"):
            seen += [answers(client), answers(other)]
            new = {"id": f"n{time.monotonic_ns()}", "input": "quite another matter", "output": "x"}
            assert other.post(f"{place}/demonstrations", json={"demonstrations": [new]}).status_code == 201
        finished(client, begun)
        after = answers(client)
        assert after[0] != before[0]
        assert after[1] != before[1]
        assert {fingerprint for fingerprint, _ in seen} <= {before[0], after[0]}
        assert answers(other) == after
        with TestClient(create_app(both)) as again:
            assert answers(again) == after
        assert client.post(f"{place}/retriever/rollback").status_code == 200
        assert answers(client)[0] == before[0]


def test_a_pool_that_was_not_asked_yet_goes_on_under_the_files_before(
    client: TestClient, both: Settings, trained: Path, bert_folder: Path
) -> None:
    for name in ("tickets", "films", "others"):
        fill(client, name, ROWS[:20])
        finished(client, client.put(f"/v1/pools/{name}/retriever", json={"retriever": "mine"}))
    with TestClient(create_app(both)) as again:
        retrieve(again, "tickets", "ticket")
        retrieve(again, "films", "ticket")
        write_retriever(trained, bert_folder, 0.1)
        finished(again, again.put("/v1/pools/tickets/retriever", json={"retriever": "mine"}))
        assert retrieve(again, "others", "ticket 7", k=5) == retrieve(client, "others", "ticket 7", k=5)


def test_a_switch_to_the_retriever_that_answers_changes_nothing(client: TestClient) -> None:
    fill(client, "tickets")
    before = client.get("/v1/pools/tickets").json()
    finished(client, client.put("/v1/pools/tickets/retriever", json={"retriever": "dense"}))
    after = client.get("/v1/pools/tickets").json()
    assert (after["retriever"], after["previous_retriever"]) == (before["retriever"], before["previous_retriever"])


def test_a_switch_counts_what_was_not_read_to_its_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client, "tickets", ROWS[:20])
    monkeypatch.setattr(PoolEncoder, "tokens_cut", lambda _, texts: [5 * (t.id in "37") for t in texts])
    job = finished(client, client.put("/v1/pools/tickets/retriever", json={"retriever": "mine"}))
    assert (job["done"], job["cut"]) == (20, 2)


def test_no_answer_mixes_two_encodings(client: TestClient) -> None:
    """Each answer's similarities are those of the retriever that it names."""
    fill(client, "tickets", ROWS[:50])
    asked = {"pool": "tickets", "queries": ["ticket 7 of"], "k": 10}
    by_name = {"dense": client.post("/v1/retrieve", json=asked).json()["results"]}
    finished(client, client.put("/v1/pools/tickets/retriever", json={"retriever": "mine"}))
    by_name["mine"] = client.post("/v1/retrieve", json=asked).json()["results"]
    assert by_name["mine"] != by_name["dense"]
    for _ in range(3):
        client.post("/v1/pools/tickets/retriever/rollback")
        answer = client.post("/v1/retrieve", json=asked).json()
        assert answer["results"] == by_name[answer["retriever"]]


def test_a_switch_that_a_restart_interrupts_goes_on(
    both: Settings, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, "tickets")
    monkeypatch.setattr(serving.filling, "_AT_ONCE", 4)
    begun = client.put("/v1/pools/tickets/retriever", json={"retriever": "mine"})
    place = f"/v1/jobs/{begun.json()['id']}"
    while client.get(place).json()["done"] < 8:
        assert client.get(place).json()["state"] in ("queued", "running")
    refused(client.put("/v1/pools/tickets/retriever", json={"retriever": "mine"}), 409, "cancel")
    client.__exit__(None, None, None)
    with TestClient(create_app(both)) as again:
        job = again.get(place).json()
        assert 8 <= job["done"] < 300
        assert finished(again, begun)["done"] == 300
        assert again.get("/v1/pools/tickets").json()["retriever"] == "mine"
    client.__enter__()


def test_a_switch_that_fails_or_is_cancelled_leaves_the_pool_as_it_was(client: TestClient, trained: Path) -> None:
    fill(client, "tickets")
    stated = trained / "encoder" / "encoder.json"
    whole = stated.read_text()
    stated.write_text("{}")
    failed = finished(client, client.put("/v1/pools/tickets/retriever", json={"retriever": "mine"}), "failed")
    assert "encoder" in failed["error"]
    stated.write_text(whole)
    begun = client.put("/v1/pools/tickets/retriever", json={"retriever": "mine"})
    assert client.delete(f"/v1/jobs/{begun.json()['id']}").json()["state"] == "cancelled"
    refused(client.delete(f"/v1/jobs/{begun.json()['id']}"), 409, "ended")
    assert client.get("/v1/pools/tickets").json()["retriever"] == "dense"
    assert len(retrieve(client, "tickets", "ticket", k=1000)) == 300


def unreadable(by: type, error: Exception) -> Any:
    """Encodes demonstrations as ever, but not under such an encoder where their input is `unreadable`."""
    encode = PoolEncoder.encode_demonstrations

    def picky(self: PoolEncoder, demonstrations: Sequence[Demonstration]) -> FloatArray:
        if isinstance(self.encoder, by) and any("unreadable" in d.input for d in demonstrations):
            raise error
        return encode(self, demonstrations)

    return picky


@pytest.mark.parametrize("error", [DataError("no picture"), RuntimeError("index\nout of range")])
def test_a_row_that_cannot_be_encoded_is_told_and_keeps_no_other_from_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(PoolEncoder, "encode_demonstrations", unreadable(FakeEncoder, error))
    assert client.post("/v1/pools", json={"name": "tickets"}).status_code == 201
    bad = {str(i): {"id": str(i), "input": f"unreadable {i}", "output": "x"} for i in (3, 4, 280)}
    body = b"".join(json.dumps(bad.get(row["id"], row)).encode() + b"\n" for row in ROWS)
    for encoded in (297, 0):
        begun = client.post("/v1/pools/tickets/load", content=body, headers={"content-type": "application/x-ndjson"})
        job = finished(client, begun)
        assert (job["refused"], job["encoded"]) == (0, encoded)
        assert [e["line"] for e in job["errors"]] == [None] * 3
        for row, told in zip(bad, job["errors"], strict=True):
            assert f"id {row!r}" in told["detail"]
            assert " ".join(str(error).split()) in told["detail"]
    assert len(retrieve(client, "tickets", "ticket", k=1000)) == 297
    assert len(retrieve(client, "tickets", "ticket", k=1000, retriever="bm25")) == 300


def test_a_switch_and_a_roll_back_say_which_row_prevents_them(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, "tickets", [{"id": "b", "input": "unreadable", "output": "x"}, *ROWS[:20]])
    place, encode = "/v1/pools/tickets", PoolEncoder.encode_demonstrations
    monkeypatch.setattr(PoolEncoder, "encode_demonstrations", unreadable(MixedEncoder, DataError("no picture")))
    failed = finished(client, client.put(f"{place}/retriever", json={"retriever": "mine"}), "failed")
    assert "id 'b': 'mine' cannot encode it (no picture)" in failed["error"]
    assert failed["done"] == 20
    assert failed["errors"][0]["detail"] in failed["error"]
    assert client.get(place).json()["retriever"] == "dense"
    monkeypatch.setattr(PoolEncoder, "encode_demonstrations", encode)
    finished(client, client.put(f"{place}/retriever", json={"retriever": "mine"}))
    monkeypatch.setattr(PoolEncoder, "encode_demonstrations", unreadable(FakeEncoder, DataError("no picture")))
    body = b'{"id": "c", "input": "unreadable too", "output": "x"}'
    begun = client.post(f"{place}/load", content=body, headers={"content-type": "application/x-ndjson"})
    assert finished(client, begun)["encoded"] == 1
    refused(client.post(f"{place}/retriever/rollback"), 409, "id 'c': 'dense' cannot encode it (no picture)")
    assert client.delete(f"{place}/demonstrations/c").status_code == 204
    assert client.post(f"{place}/retriever/rollback").json()["retriever"] == "dense"


class Failing(FakeEncoder):
    """Breaks down when it is asked for many."""

    def encode_queries(self, queries: Sequence[Any], instruction: str = "") -> FloatArray:
        if len(queries) > 4:
            raise RuntimeError("no such kernel")
        return super().encode_queries(queries, instruction)


def test_an_encoder_that_fails_fails_its_request_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.retrievers.FakeEncoder", Failing)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        fill(client, "tickets", ROWS[:3])
        answer = client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": ROWS[:9]})
        refused(answer, 500, "log")
        assert client.get("/v1/pools/tickets").json()["demonstrations"] == 3
        assert retrieve(client, "tickets", "ticket 1", k=3)
        assert client.get("/readyz").status_code == 200
