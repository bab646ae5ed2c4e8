"""What the service loads to encode with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import udr.devices
from serving.app import create_app
from serving.retrievers import Precision, Retrievers, sentence_encoder
from serving.settings import Settings
from tests.serving.tools import finished
from udr.errors import UnknownNameError
from udr.types import Query

QUERIES = [Query("1", "the film was a joy"), Query("2", "one fish two fish")]


@pytest.mark.parametrize(
    ("precision", "unit", "quick"),
    [("auto", True, "int8"), ("auto", False, "float32"), ("int8", False, "int8"), ("float32", True, "float32")],
)
def test_queries_are_encoded_in_int8_where_that_is_quicker(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, unit: bool, quick: str
) -> None:
    monkeypatch.setattr(udr.devices, "multiplies_int8", lambda: unit)
    encoder = Retrievers(sentence_encoder(str(bert_folder)), {}, precision=precision).plain("dense")
    exact = encoder.encoder.encode_queries(QUERIES)
    found = encoder.encode_queries(QUERIES)
    assert (np.abs(found - exact).max() == 0) == (quick == "float32")
    assert (found * exact).sum(1).min() > 0.9  # near its place
    assert "int8" not in encoder.fingerprint  # the index is the exact encoder's
    assert encoder.reads_texts_alone


def test_an_unknown_retriever_lists_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean dense"):
        Retrievers(sentence_encoder("fake"), {}).plain("dens")


def test_an_encoder_by_address_is_a_retriever(bert_folder: Path, tmp_path: Path) -> None:
    address = f"st:{bert_folder}"
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="none", retrievers={"minute": address})
    expected = sentence_encoder(address)().encode_queries(QUERIES)
    with TestClient(create_app(settings)) as client:
        assert client.get("/v1/retrievers").json()["retrievers"] == ["minute", "bm25", "hybrid"]
        client.post("/v1/pools", json={"name": "p"})
        rows = [{"id": q.id, "input": q.input, "output": "y"} for q in QUERIES]
        client.post("/v1/pools/p/demonstrations", json={"demonstrations": rows})
        finished(client, client.put("/v1/pools/p/retriever", json={"retriever": "minute"}))
        for model in ("minute", "p@"):
            answer = client.post("/v1/embeddings", json={"model": model, "input": [q.input for q in QUERIES]})
            assert np.allclose([row["embedding"] for row in answer.json()["data"]], expected, atol=1e-5)
        asked = {"pool": "p", "queries": [QUERIES[0].input], "k": 2}
        (found,) = client.post("/v1/retrieve", json=asked).json()["results"]
        assert [d["similarity"] for d in found["demonstrations"]] == pytest.approx(
            [1.0, float(expected[0] @ expected[1])], abs=1e-5
        )
