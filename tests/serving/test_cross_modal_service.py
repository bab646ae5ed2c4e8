"""One pool asked by text, picture and voice: an encoder of all three, through the real app."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient
from PIL import Image

from embed.cross_modal import build_net, load_cross_modal, save_cross_modal
from serving.app import create_app
from serving.settings import Settings
from tests.serving.chat_server import ChatServer, chat_server
from tests.serving.tools import finished, refused
from udr.types import Media, Query

COUNT = 6
SHAPE: dict[str, Any] = {
    "modalities": ["image", "text", "audio"], "backbone": "conv", "size": 32, "dim": 16, "out": 24, "codes": 8,
    "width": 16, "slots": 1, "frozen": {}, "patience": 100,
}  # fmt: skip


def picture(number: int) -> dict[str, str]:
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(file, "PNG")
    return {"kind": "image", "uri": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}


@cache  # an Ogg file bears a number that is drawn
def voice(number: int, form: str = "WAV", seconds: float = 0.6) -> dict[str, str]:
    file = io.BytesIO()
    samples = np.random.default_rng(number).normal(0, 0.1, int(8000 * seconds)).cumsum()
    soundfile.write(file, 0.5 * samples / np.abs(samples).max(), 8000, format=form)
    return {"kind": "audio", "uri": f"data:audio/{form.lower()};base64," + base64.b64encode(file.getvalue()).decode()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    torch.manual_seed(0)
    net = build_net(**SHAPE)
    net.quantizer.begun.fill_(True)
    save_cross_modal(net, folder / "encoder", {**SHAPE, "frozen_encoders": {}}, {"method": "none"})
    return folder


@pytest.fixture
def upstream() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def client(tmp_path: Path, encoder: Path, upstream: ChatServer) -> Iterator[TestClient]:
    database = f"sqlite:///{tmp_path}/udr.sqlite"
    settings = Settings(database=database, encoder="none", retrievers={"any": str(encoder)}, upstream=upstream.url)
    # pictures, sounds and texts in one pool
    rows: list[dict[str, Any]] = [
        {"id": f"p{i}", "input": "", "output": f"thing {i}", "media": [picture(i)]} for i in range(COUNT)
    ]
    rows += [{"id": f"a{i}", "input": "", "output": f"thing {i}", "media": [voice(i, "OGG")]} for i in range(COUNT)]
    rows += [{"id": f"t{i}", "input": f"this is thing {i}", "output": f"thing {i}"} for i in range(COUNT)]
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "things"})
        answer = client.post("/v1/pools/things/demonstrations", json={"demonstrations": rows})
        assert answer.status_code == 201, answer.text
        finished(client, client.put("/v1/pools/things/retriever", json={"retriever": "any"}))
        yield client


def test_a_query_of_any_modality_finds_as_the_encoder_ranks_over_one_index(client: TestClient, encoder: Path) -> None:
    own = load_cross_modal(encoder / "encoder", "cpu")
    pool = [Query(f"p{i}", "", media=(Media(**picture(i)),)) for i in range(COUNT)]  # type: ignore[arg-type]
    pool += [Query(f"a{i}", "", media=(Media(**voice(i, "OGG")),)) for i in range(COUNT)]  # type: ignore[arg-type]
    pool += [Query(f"t{i}", f"this is thing {i}") for i in range(COUNT)]
    vectors = own.encode_queries(pool)
    asked: list[dict[str, Any]] = [
        {"input": "a thing that is new"},
        {"input": "", "media": [picture(50)]},
        {"input": "", "media": [voice(51)]},
        {"input": "what is said beside a sound is not read", "media": [voice(3, "OGG")]},
    ]
    media = [tuple(Media(**m) for m in a.get("media", ())) for a in asked]
    expected = own.encode_queries([Query("q", a["input"], media=m) for a, m in zip(asked, media, strict=True)])
    answer = client.post("/v1/retrieve", json={"pool": "things", "queries": asked, "k": 5})
    assert answer.status_code == 200, answer.text
    for result, vector in zip(answer.json()["results"], expected, strict=True):
        sims = vectors @ vector
        hits = result["demonstrations"]
        assert [h["similarity"] for h in hits] == pytest.approx(np.sort(sims)[::-1][:5].tolist(), abs=1e-5)
        assert [h["id"] for h in hits] == [pool[i].id for i in np.argsort(-sims)[:5]]
    assert answer.json()["results"][3]["demonstrations"][0]["id"] == "a3"


def test_a_question_by_voice_becomes_a_chat_with_demonstrations(client: TestClient, upstream: ChatServer) -> None:
    sound = voice(2, "OGG")
    body = {"pool": "things", "queries": [{"input": "", "media": [sound]}], "k": 1, "budget": 200}
    messages = client.post("/v1/prompt", json=body).json()["results"][0]["messages"]
    spoken = {"type": "input_audio", "input_audio": {"data": sound["uri"].partition(",")[2], "format": "ogg"}}
    assert messages[0]["content"] == [spoken]  # the nearest is the same sound
    assert messages[1]["content"] == "thing 2"
    assert messages[2]["content"] == [spoken]
    chat = {"model": "things@lm", "messages": [{"role": "user", "content": [spoken]}], "udr": {"k": 1}}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    shown = upstream.body["messages"]
    assert [m["role"] for m in shown] == ["user", "assistant", "user"]
    assert shown[1]["content"] == "thing 2"
    assert shown[2]["content"] == [spoken]


def test_a_sound_that_cannot_be_read_is_refused_in_one_line(client: TestClient) -> None:
    def told(media: dict[str, str], words: str) -> None:
        body = {"pool": "things", "queries": [{"input": "", "media": [media]}]}
        refused(client.post("/v1/retrieve", json=body), 422, words)
        one = {"id": "new", "input": "x", "output": "y", "media": [media]}
        refused(client.post("/v1/pools/things/demonstrations", json={"demonstrations": [one]}), 422, words)

    told({"kind": "audio", "uri": "data:audio/wav;base64,AAAA"}, "no sound that can be read")
    told({"kind": "audio", "uri": "http://127.0.0.1/a.wav"}, "not fetched")
    told(voice(0, "OGG", 61), "longer than the 60 s")
    told({"kind": "audio", "uri": "data:audio/wav;base64," + "A" * 1_600_000}, "1500000 characters")
    body = {"pool": "things", "queries": [{"input": " "}]}
    refused(client.post("/v1/retrieve", json=body), 422, "nothing to read")
    assert client.get("/v1/pools/things").json()["demonstrations"] == 3 * COUNT
