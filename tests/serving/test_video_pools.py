"""Pools of videos: found by video under a video encoder, kept in the store, and put into chats."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from films import film, moving, sound

from embed.video import load_video_encoder, save_video_backbone
from embed.video_backbones import build_video_backbone
from serving.app import create_app
from serving.settings import Settings
from tests.serving.chat_server import ChatServer, chat_server
from tests.serving.tools import finished, refused
from udr.types import Media, Query

COUNT = 6


@cache
def uri(number: int) -> str:
    return "data:video/mp4;base64," + base64.b64encode(film(moving(number, 12))).decode()


def row(number: int) -> dict[str, Any]:
    media = [{"kind": "video", "uri": uri(number)}]
    return {"id": f"v{number}", "input": "What happens?", "output": f"thing {number}", "media": media}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `udr pretrain`, whose backbone is untrained."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    backbone = build_video_backbone("r3d_tiny", 16, 4)
    save_video_backbone(backbone, folder / "encoder", {"method": "none"}, rate=25, pace=2, clips=2)
    return folder


@pytest.fixture
def upstream() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def client(tmp_path: Path, encoder: Path, upstream: ChatServer) -> Iterator[TestClient]:
    database = f"sqlite:///{tmp_path}/udr.sqlite"
    settings = Settings(database=database, encoder="none", retrievers={"videos": str(encoder)}, upstream=upstream.url)
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "things"})
        rows = [row(i) for i in range(COUNT)]
        assert client.post("/v1/pools/things/demonstrations", json={"demonstrations": rows}).status_code == 201
        finished(client, client.put("/v1/pools/things/retriever", json={"retriever": "videos"}))
        yield client


def test_videos_are_found_by_video_as_the_encoder_ranks_them(client: TestClient, encoder: Path) -> None:
    own = load_video_encoder(encoder / "encoder", "cpu")
    vectors = own.encode_queries([Query(str(i), "", media=(Media("video", uri(i)),)) for i in range(COUNT + 1)])
    for number in (0, 4, COUNT):  # the last one is new
        query = {"input": "What happens?", "media": [{"kind": "video", "uri": uri(number)}]}
        answer = client.post("/v1/retrieve", json={"pool": "things", "queries": [query], "k": 3})
        assert answer.status_code == 200, answer.text
        hits = answer.json()["results"][0]["demonstrations"]
        sims = vectors[number] @ vectors[:COUNT].T
        assert [h["id"] for h in hits] == [f"v{i}" for i in np.argsort(-sims)[:3]]
        assert [h["similarity"] for h in hits] == pytest.approx(np.sort(sims)[::-1][:3].tolist(), abs=1e-5)
        assert hits[0]["media"][0]["uri"].startswith("data:video/mp4;base64,")


def test_a_chat_is_answered_with_the_clips_of_the_demonstrations(client: TestClient, upstream: ChatServer) -> None:
    content = [{"type": "text", "text": "What happens?"}, {"type": "video_url", "video_url": {"url": uri(4)}}]
    chat = {"model": "things@lm", "messages": [{"role": "user", "content": content}], "udr": {"k": 1}}
    answer = client.post("/v1/chat/completions", json=chat)
    assert answer.status_code == 200, answer.text
    shown = upstream.body["messages"]
    assert shown[0]["content"][0] == {"type": "video_url", "video_url": {"url": uri(4)}}
    assert shown[1]["content"] == "thing 4"
    assert shown[2]["content"] == content


def test_what_is_no_video_is_refused_and_an_address_is_not_fetched(client: TestClient) -> None:
    def told(media: list[dict[str, str]], words: str) -> None:
        body = {"pool": "things", "queries": [{"input": "What happens?", "media": media}]}
        refused(client.post("/v1/retrieve", json=body), 422, words)
        one = {"id": "new", "input": "x", "output": "y", "media": media}
        refused(client.post("/v1/pools/things/demonstrations", json={"demonstrations": [one]}), 422, words)

    of_sound = "data:video/mp4;base64," + base64.b64encode(sound()).decode()
    list_of_files = "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n").decode()
    told([], "no video")
    told([{"kind": "image", "uri": uri(0)}], "no video")
    told([{"kind": "video", "uri": "http://127.0.0.1/x.mp4"}], "not fetched")
    told([{"kind": "video", "uri": "data:video/mp4;base64,AAAA"}], "no video that can be read")
    told([{"kind": "video", "uri": of_sound}], "only sound")
    told([{"kind": "video", "uri": list_of_files}], "no video that can be read")
    told([{"kind": "video", "uri": "data:video/mp4;base64," + "A" * 8_000_000}], "at most 8000000 characters")
    told([{"kind": "image", "uri": "data:image/png;base64," + "A" * 1_500_000}], "at most 1500000 characters")
    assert client.get("/v1/pools/things").json()["demonstrations"] == COUNT
