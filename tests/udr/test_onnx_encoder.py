"""ONNX Runtime against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from udr import onnx_encoder
from udr.encoder import build_encoder
from udr.errors import ConfigError
from udr.onnx_encoder import OnnxEncoder
from udr.types import Demonstration, Query

TEXTS = ["the film was a joy", "a", "shares of the bank fell " * 30, "", "zzz ?!", "one fish two fish"]
QUERIES = [Query(str(i), t) for i, t in enumerate(TEXTS)]
SOLVED = [Demonstration(str(i), t, "it was great") for i, t in enumerate(TEXTS)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("folder", ["bert_folder", "cls_bert_folder"])
def test_vectors_are_those_of_torch(request: pytest.FixtureRequest, folder: str, shared: bool, unit_norm: bool) -> None:
    own = build_encoder(str(request.getfixturevalue(folder)), shared=shared, unit_norm=unit_norm, device="cpu")
    if not shared:
        with torch.no_grad():
            next(own.demonstration_tower.parameters()).mul_(0.5)
    made = OnnxEncoder(own)
    assert (made.dim, made.fingerprint) == (own.dim, own.fingerprint)
    for instruction in ("", "sentiment of the sentence:"):
        wanted = own.encode_queries(QUERIES, instruction)
        np.testing.assert_allclose(made.encode_queries(QUERIES, instruction), wanted, atol=1e-5)
        wanted = own.encode_demonstrations(SOLVED, instruction)
        np.testing.assert_allclose(made.encode_demonstrations(SOLVED, instruction), wanted, atol=1e-5)
        assert made.tokens_cut(QUERIES, instruction) == own.tokens_cut(QUERIES, instruction)
        assert made.tokens_read(QUERIES, instruction) == own.tokens_read(QUERIES, instruction)
    assert made.encode_queries([]).shape == (0, own.dim)


def test_in_int8_vectors_move_a_little(bert_folder: Path) -> None:
    own = build_encoder(str(bert_folder), device="cpu")
    made = OnnxEncoder(own, precision="int8")
    assert made.fingerprint != own.fingerprint
    exact, near = own.encode_queries(QUERIES), made.encode_queries(QUERIES)
    assert np.abs(near - exact).max() > 0
    assert (near * exact).sum(axis=1).min() > 0.98


def test_a_graph_that_computes_something_else_is_refused(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = build_encoder(str(bert_folder), device="cpu")
    export = onnx_encoder._export

    def wrong(tower: torch.nn.Module, file: Path) -> Path:
        with torch.no_grad():
            weights = next(tower.parameters())
            kept = weights.clone()
            weights.mul_(1.5)
            export(tower, file)
            weights.copy_(kept)
        return file

    monkeypatch.setattr(onnx_encoder, "_export", wrong)
    with pytest.raises(ConfigError, match="off by"):
        OnnxEncoder(own)
    half = build_encoder(str(bert_folder), precision="bfloat16", device="cpu")
    with pytest.raises(ConfigError, match="bfloat16"):
        OnnxEncoder(half)
