"""Tags on the way in: what a labeller finds becomes metadata, which requests filter and balance by."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from labelled_things import labelled
from PIL import Image

from embed.labeller import Labeller, save_labeller
from embed.labelling import build_label_net
from embed.media import open_picture
from embed.towers import grams_of
from serving import tagging
from serving.app import create_app
from serving.schemas import MOST_METADATA
from serving.settings import Settings
from serving.tagging import Tagger, open_tagger
from tests.serving.tools import finished
from udr.errors import ArtifactError
from udr.types import Demonstration, Media

SHAPE = {"backbone": "conv", "size": 24, "width": 16, "token_dim": 0, "hidden": 16, "attention": 8, "embedding": 4}
WORDS = {"sun": ("a sunny day", "sun and sand"), "snow": ("snow at night", "cold snow")}


@pytest.fixture(scope="module")
def labeller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose labeller of texts knows two words."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = build_label_net("text", len(WORDS), **SHAPE)
    texts = [text for own in WORDS.values() for text in own]
    grams, truth = grams_of(texts), torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net.see(grams).preliminary, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_labeller(Labeller(net, "text", list(WORDS), ordered=False), folder / "labeller", SHAPE, {})
    return folder


@pytest.fixture
def tagged(tmp_path: Path, labeller: Path) -> Settings:
    return Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake", labeller=str(labeller))


def rows() -> list[dict[str, Any]]:
    texts = [text for own in WORDS.values() for text in own]
    return [{"id": f"d{i}", "input": text, "output": "x", "metadata": {"lang": "en"}} for i, text in enumerate(texts)]


def test_what_comes_in_is_tagged_by_any_way_and_filtered_by_it(tagged: Settings) -> None:
    with TestClient(create_app(tagged)) as client:
        client.post("/v1/pools", json={"name": "days", "task": {"kind": "generation", "metric": "exact_match"}})
        first, *others = rows()
        client.put("/v1/pools/days/demonstrations/d0", json=first)
        client.post("/v1/pools/days/demonstrations", json={"demonstrations": others[:1]})

        lines = "".join(json.dumps(row) + "\n" for row in others[1:])
        begun = client.post("/v1/pools/days/load", content=lines, headers={"Content-Type": "application/x-ndjson"})
        finished(client, begun)
        for name, expected in (("sun", {"d0", "d1"}), ("snow", {"d2", "d3"})):
            body = {"pool": "days", "queries": ["night"], "k": 4, "where": {f"label:{name}": {"gte": 0.5}}}
            (found,) = client.post("/v1/retrieve", json=body).json()["results"]
            assert {one["id"] for one in found["demonstrations"]} == expected
        body = {"pool": "days", "queries": ["a sunny day"], "k": 2, "selection": "balanced_tags"}
        (found,) = client.post("/v1/retrieve", json=body).json()["results"]
        tags = [set(one["metadata"]) - {"lang"} for one in found["demonstrations"]]
        assert tags == [{"label:sun"}, {"label:snow"}]


def test_what_a_demonstration_says_of_itself_stays_and_what_cannot_be_read_is_left(labeller: Path) -> None:
    stated = Demonstration("a", "a sunny day", "x", metadata={"label:sun": "mine"})
    (found,) = open_tagger(labeller)([stated])
    assert found.metadata == {"label:sun": "mine"}
    assert open_tagger(labeller)([Demonstration("b", " ", "x")])[0].metadata == {}
    net = build_label_net("image", 2, **SHAPE)
    pictures = Tagger(Labeller(net, "image", ["a", "b"], size=24, ordered=False), threshold=0.0)
    good = base64.b64encode(labelled(1)[0].image).decode()
    given = [
        Demonstration("none", "x", "y"),
        Demonstration("bad", "x", "y", media=(Media("image", uri="data:image/png;base64,AAAA"),)),
        Demonstration("good", "x", "y", media=(Media("image", uri=f"data:image/png;base64,{good}"),)),
    ]
    torch.nn.init.constant_(net.maps.bias, 9.0)  # everything is both
    none, bad, fine = pictures(given)
    assert (none, bad) == (given[0], given[1])
    assert set(fine.metadata) == {"label:a", "label:b"}
    full = {str(i): "x" for i in range(MOST_METADATA - 1)}
    torch.nn.init.constant_(net.maps.weight, 0.0)
    net.maps.bias.data = torch.tensor([2.0, 9.0])
    (only,) = pictures([replace(given[2], metadata=full)])  # the surest one still fits
    assert set(only.metadata) - set(full) == {"label:b"}
    (more,) = pictures([replace(given[2], metadata=full | {"a": "x", "b": "x"})])
    assert len(more.metadata) == MOST_METADATA + 1  # of itself it may say what it likes


def test_a_picture_is_opened_once_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    pictures = Tagger(Labeller(build_label_net("image", 2, **SHAPE), "image", ["a", "b"], size=24, most=2))

    def watched(*given: Any) -> Image.Image:
        opened.append(pictures._lock.locked())
        return open_picture(*given)

    monkeypatch.setattr(tagging, "open_picture", watched)
    media = [Media("image", data=row.image) for row in labelled(3)]
    pictures([Demonstration(str(i), "x", "y", media=(one,)) for i, one in enumerate(media)])
    assert opened == [True] * 3


def test_a_missing_labeller_is_told_at_the_start(tmp_path: Path) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake", labeller=str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match=r"labeller\.json"), TestClient(create_app(settings)):
        pass
