"""Every kind of image encoder behind one contract, over models made on the spot."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embed.backbones import build_backbone
from embed.image import ImageEncoder, load_image_encoder, save_backbone
from embed.registry import open_encoder
from udr.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from udr.types import Demonstration, Encoder, Media, Query


def shown(number: int) -> Media:
    pixels = np.random.default_rng(number).integers(0, 255, (24 + number, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Media("image", data=file.getvalue())


QUERIES = [Query(str(i), "text that is not read", media=(shown(i % 4),)) for i in range(5)]
DEMONSTRATIONS = [Demonstration(q.id, q.input, "out", media=q.media) for q in QUERIES]


def own(folder: Path) -> str:
    torch.manual_seed(0)
    save_backbone(build_backbone("conv", 32), folder, {"method": "none"})
    return f"artifact:{folder}"


def vision(folder: Path) -> str:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


ADDRESSES: dict[str, Callable[[Path], str]] = {"artifact": own, "hf": vision}


@pytest.fixture(params=ADDRESSES)
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    return open_encoder(ADDRESSES[request.param](tmp_path / "model"), "cpu")


def test_an_image_encoder_gives_a_unit_vector_a_picture_alone_in_a_batch_and_again(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode_queries(QUERIES)
    assert vectors.shape == (5, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-6)  # the same picture
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    np.testing.assert_allclose(encoder.encode_demonstrations(DEMONSTRATIONS), vectors, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES[2:3])[0], vectors[2], atol=1e-5)
    assert encoder.encode_queries([]).shape == (0, encoder.dim)


def test_a_query_without_a_picture_is_named(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="q7: no picture"):
        encoder.encode_queries([Query("q7", "words alone")])
    with pytest.raises(DataError, match="q8: no picture of a known format"):
        encoder.encode_queries([Query("q8", "", media=(Media("image", data=b"none"),))])


def test_another_models_vectors_have_another_fingerprint(tmp_path: Path) -> None:
    for number, make in enumerate(ADDRESSES.values()):
        address = make(tmp_path / f"a{number}")
        first = open_encoder(address, "cpu").fingerprint
        assert open_encoder(address, "cpu").fingerprint == first
    torch.manual_seed(1)
    save_backbone(build_backbone("conv", 32), tmp_path / "b", {})
    save_backbone(build_backbone("conv", 48), tmp_path / "c", {})
    found = {load_image_encoder(tmp_path / name, "cpu").fingerprint for name in ("a0", "b", "c")}
    assert len(found) == 3


def test_regions_are_cells_whose_mean_is_the_picture(tmp_path: Path) -> None:
    own(tmp_path / "m")
    encoder = load_image_encoder(tmp_path / "m", "cpu")
    assert isinstance(encoder, ImageEncoder)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32), dtype=np.uint8)
    regions = encoder.encode_regions(pixels)
    assert regions.shape == (2, 16, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(regions, axis=2), 1, atol=1e-5)
    # a change in one corner moves that corner's vector most
    pixels[0, :, :4, :4] = 255 - pixels[0, :, :4, :4]
    moved = np.linalg.norm(encoder.encode_regions(pixels)[0] - regions[0], axis=1)
    assert moved.argmax() == 0


def test_what_is_no_encoder_is_told(tmp_path: Path) -> None:
    cases: list[tuple[str, type[Exception], str]] = [
        ("model", ConfigError, "expected artifact:NAME"),
        ("hf:", ConfigError, "expected artifact:NAME"),
        ("hub:x", UnknownNameError, "kind of encoder"),
        (f"artifact:{tmp_path}", ArtifactError, "no encoder folder"),
        (f"hf:{tmp_path}", ConfigError, "cannot be loaded"),
    ]
    for address, kind, words in cases:
        with pytest.raises(kind, match=words):
            open_encoder(address)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    own(tmp_path / "m")

    def damaged(change: Callable[[Path], Any]) -> Path:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(tmp_path / "m", tmp_path / "d")
        change(tmp_path / "d")
        return tmp_path / "d"

    def flip(folder: Path) -> None:
        raw = bytearray((folder / "model.safetensors").read_bytes())
        raw[-9] ^= 1
        (folder / "model.safetensors").write_bytes(raw)

    def resize(folder: Path) -> None:
        saved = json.loads((folder / "encoder.json").read_text())
        (folder / "encoder.json").write_text(json.dumps({**saved, "size": 64}))

    for change in (flip, resize, lambda folder: (folder / "model.safetensors").unlink()):
        with pytest.raises(ArtifactError, match="differ from what was saved"):
            load_image_encoder(damaged(change))
