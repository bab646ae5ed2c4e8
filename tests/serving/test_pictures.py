"""Pools of pictures: found by picture under an image encoder, kept in the store, and put into chats."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from embed.backbones import build_backbone
from embed.image import load_image_encoder, save_backbone
from serving.app import create_app
from serving.settings import Settings
from tests.serving.chat_server import ChatServer, chat_server
from tests.serving.tools import finished, refused
from udr.types import Media, Query

COUNT = 12


def uri(number: int) -> str:
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def row(number: int) -> dict[str, Any]:
    media = [{"kind": "image", "uri": uri(number)}]
    return {"id": f"p{number}", "input": "What is this?", "output": f"thing {number}", "media": media}


def asked(number: int, **more: Any) -> dict[str, Any]:
    query = {"input": "What is this?", "media": [{"kind": "image", "uri": uri(number)}]}
    return {"pool": "things", "queries": [query], "k": 3, **more}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `udr pretrain`, whose backbone is untrained."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    save_backbone(build_backbone("conv", 32), folder / "encoder", {"method": "none"})
    return folder


@pytest.fixture
def upstream() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, encoder: Path, upstream: ChatServer) -> Settings:
    database = f"sqlite:///{tmp_path}/udr.sqlite"
    return Settings(database=database, encoder="none", retrievers={"pictures": str(encoder)}, upstream=upstream.url)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "things"})
        rows = [row(i) for i in range(COUNT)]
        assert client.post("/v1/pools/things/demonstrations", json={"demonstrations": rows}).status_code == 201
        finished(client, client.put("/v1/pools/things/retriever", json={"retriever": "pictures"}))
        yield client


def found(client: TestClient, number: int, **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/retrieve", json=asked(number, **more))
    assert answer.status_code == 200, answer.text
    shown: list[dict[str, Any]] = answer.json()["results"][0]["demonstrations"]
    return shown


def test_pictures_are_found_by_picture_as_the_encoder_ranks_them(client: TestClient, encoder: Path) -> None:
    own = load_image_encoder(encoder / "encoder", "cpu")
    vectors = own.encode_queries([Query(str(i), "", media=(Media("image", uri(i)),)) for i in range(COUNT + 1)])
    for number in (0, 7, COUNT):  # the last one is new
        sims = vectors[number] @ vectors[:COUNT].T
        hits = found(client, number)
        assert [h["id"] for h in hits] == [f"p{i}" for i in np.argsort(-sims)[:3]]
        assert [h["similarity"] for h in hits] == pytest.approx(np.sort(sims)[::-1][:3].tolist(), abs=1e-5)
        assert hits[0]["media"][0]["uri"].startswith("data:image/png;base64,")
    by_words = found(client, 3, retriever="bm25")
    assert len(by_words) == 3


def test_pictures_outlive_the_process(client: TestClient, settings: Settings) -> None:
    before = found(client, 5)
    with TestClient(create_app(settings)) as again:
        assert found(again, 5) == before


def test_a_prompt_for_chats_shows_the_pictures(client: TestClient, upstream: ChatServer) -> None:
    answer = client.post("/v1/prompt", json=asked(4, k=2, budget=500))
    assert answer.status_code == 200, answer.text
    messages = answer.json()["results"][0]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    picture, text = messages[2]["content"]
    assert picture == {"type": "image_url", "image_url": {"url": uri(4)}}  # the nearest stands next to the query
    assert text == {"type": "text", "text": "What is this?"}
    assert messages[3]["content"] == "thing 4"
    assert messages[-1]["content"][0]["image_url"]["url"] == uri(4)
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": uri(4)}}]
    chat = {"model": "things@lm", "messages": [{"role": "user", "content": content}], "udr": {"k": 1}}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    shown = upstream.body["messages"]
    assert shown[0]["content"][0]["image_url"]["url"] == uri(4)
    assert shown[1]["content"] == "thing 4"
    assert shown[2]["content"] == content


@pytest.mark.parametrize("front", [{}, {"style": "text"}, {"retriever": "hybrid"}])
def test_a_turn_that_is_a_picture_alone_is_retrieved_for_by_it(
    client: TestClient, upstream: ChatServer, front: dict[str, Any]
) -> None:
    alone = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri(4)}}]}
    before = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "Show me."}]
    chat = {"model": "things@lm", "messages": [*before, alone], "udr": {"k": 1, **front}}
    answer = client.post("/v1/chat/completions", json=chat)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-udr-demonstrations"] == "p4"
    last = upstream.body["messages"][-1]["content"]
    assert last[0] == alone["content"][0]  # type: ignore[index]
    assert [p["type"] for p in last[1:]] == (["text"] if front.get("style") else [])
    answer = client.post("/v1/chat/completions", json={**chat, "udr": {"retriever": "bm25"}})
    assert answer.status_code == 422
    assert "bm25 reads texts alone" in answer.json()["error"]["message"]


def test_what_is_no_picture_is_refused_and_an_address_is_not_fetched(client: TestClient) -> None:
    def told(media: list[dict[str, str]], status: int, words: str) -> None:
        body = {"pool": "things", "queries": [{"input": "What is this?", "media": media}]}
        refused(client.post("/v1/retrieve", json=body), status, words)
        one = {"id": "new", "input": "x", "output": "y", "media": media}
        refused(client.post("/v1/pools/things/demonstrations", json={"demonstrations": [one]}), status, words)

    told([], 422, "no picture")
    told([{"kind": "image", "uri": "http://127.0.0.1/x.png"}], 422, "not fetched")
    told([{"kind": "image", "uri": "data:image/png;base64,AAAA"}], 422, "no picture of a known format")
    told([{"kind": "image", "uri": "http://x/" + "a" * 5000}], 422, "at most 4096 characters")
    assert client.get("/v1/pools/things").json()["demonstrations"] == COUNT


def test_pictures_are_embedded_in_openais_form(client: TestClient, encoder: Path) -> None:
    own = load_image_encoder(encoder / "encoder", "cpu")
    expected = own.encode_queries([Query(str(i), "", media=(Media("image", uri(i)),)) for i in (3, 4)])
    for model in ("pictures", "things@"):
        answer = client.post("/v1/embeddings", json={"model": model, "input": [uri(3), uri(4)]})
        assert answer.status_code == 200, answer.text
        assert np.allclose([row["embedding"] for row in answer.json()["data"]], expected, atol=1e-5)

    def told(model: str, text: str, words: str) -> None:
        answer = client.post("/v1/embeddings", json={"model": model, "input": text})
        assert answer.status_code == 422
        assert words in answer.json()["error"]["message"]

    told("pictures", "a text", "no picture")
    told("pictures", "data:image/png;base64,AAAA", "no picture of a known format")
    told("pictures", "data:image/png;charset=utf-8;base64,AAAA", "no picture of a known format")
    told("pictures", "data:image/png;base64," + "A" * 1_500_000, "at most 1500000 characters")


def test_a_text_encoder_refuses_to_embed_a_picture(tmp_path: Path) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path}/t.sqlite", encoder="fake")
    with TestClient(create_app(settings)) as client:
        answer = client.post("/v1/embeddings", json={"model": "dense", "input": ["words", uri(1)]})
        assert answer.status_code == 422
        assert "input.1: a data-URI of kind image; dense reads texts alone" in answer.json()["error"]["message"]
