"""What the service loads to encode with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import udr.devices
from serving.retrievers import Precision, Retrievers, sentence_encoder
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
