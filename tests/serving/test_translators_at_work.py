"""A translator's folder gives the service two retrievers: the same thing in any style, and the same style."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from embed.registry import open_encoder
from embed.translation import calibrate, save_translator
from embed.translation_nets import TranslationNet
from serving.app import create_app
from serving.retrievers import Retrievers
from serving.settings import Settings
from tests.serving.test_pictures import COUNT, found, row, uri
from tests.serving.tools import finished, refused
from udr.errors import ConfigError
from udr.types import Media, Query

SHAPE = {"size": 32, "width": 4, "blocks": 1, "attribute_blocks": 2, "attributes": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `udr pretrain`, whose networks are untrained."""
    made = tmp_path_factory.mktemp("translator")
    torch.manual_seed(0)
    net = TranslationNet(**SHAPE)
    noise = np.random.default_rng(0).integers(0, 120, (2, 12, 3, 32, 32))
    calibrate(net, ((noise[0]).astype(np.uint8), (noise[1] + 130).astype(np.uint8)))
    save_translator(net, ("dark", "light"), SHAPE, made / "encoder", {"method": "drit"})
    return made


@pytest.fixture
def client(tmp_path: Path, folder: Path) -> Iterator[TestClient]:
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="none", retrievers={"styles": str(folder)})
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "things"})
        rows = [row(i) for i in range(COUNT)]
        assert client.post("/v1/pools/things/demonstrations", json={"demonstrations": rows}).status_code == 201
        yield client


@pytest.mark.parametrize("reads", ["content", "attribute"])
def test_a_pool_is_indexed_by_either_of_a_translators_encoders(client: TestClient, folder: Path, reads: str) -> None:
    finished(client, client.put("/v1/pools/things/retriever", json={"retriever": f"styles-{reads}"}))
    own = open_encoder(f"{reads}:{folder / 'encoder'}", "cpu")
    vectors = own.encode_queries([Query(str(i), "", media=(Media("image", uri(i)),)) for i in range(COUNT + 1)])
    for number in (3, COUNT):
        sims = vectors[number] @ vectors[:COUNT].T
        hits = found(client, number)
        assert [h["id"] for h in hits] == [f"p{i}" for i in np.argsort(-sims)[:3]]
        assert [h["similarity"] for h in hits] == pytest.approx(np.sort(sims)[::-1][:3].tolist(), abs=1e-5)


def test_two_retrievers_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "encoder.json").write_text("{}")
    with pytest.raises(ConfigError, match="retriever 'styles': there is a styles-content already; rename one"):
        Retrievers(None, {"styles-content": str(tmp_path), "styles": str(folder)})


def test_the_folders_own_name_is_no_retriever(client: TestClient) -> None:
    answer = client.put("/v1/pools/things/retriever", json={"retriever": "styles"})
    refused(answer, 422, "styles-content")
