"""Every kind of image encoder behind one contract, over models made on the spot."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import write_clip
from tiny_encoder import write_encoder

from embed.backbones import build_backbone
from embed.image import AT_ONCE, ImageEncoder, load_image_encoder, save_backbone
from embed.pretrained import SentenceTransformerEncoder
from embed.registry import KINDS, open_encoder
from udr.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from udr.types import Demonstration, Encoder, Media, Query


def shown(number: int) -> Media:
    pixels = np.random.default_rng(number).integers(0, 255, (24 + number, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Media("image", data=file.getvalue())


def plain(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(file, "PNG")
    return file.getvalue()


def saying(width: int, height: int) -> bytes:
    """A PNG of one pixel that says it has more."""
    raw = bytearray(plain((1, 1)))
    raw[16:24] = struct.pack(">II", width, height)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


QUERIES = [Query(str(i), "text that is not read", media=(shown(i % 4),)) for i in range(5)]
DEMONSTRATIONS = [Demonstration(q.id, q.input, "out", media=q.media) for q in QUERIES]


def own(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    save_backbone(build_backbone("conv", 32), folder, {"method": "none"})
    return f"artifact:{folder}"


def vision(folder: Path, seed: int = 0) -> str:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def cells(folder: Path, seed: int = 0) -> str:
    """A convolutional model of transformers, whose output is pooled."""
    from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def clip(folder: Path, seed: int = 0) -> str:
    return f"hf:{write_clip(folder, seed)}"


def test_a_hub_model_of_text_and_pictures_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = write_clip(tmp_path / "clip")
    load, load_processor = AutoModel.from_pretrained, AutoImageProcessor.from_pretrained

    def fetched(name: str, **words: Any) -> Any:
        model = load(folder, **words)
        model.config._commit_hash = "abc"  # as the hub's client leaves it
        return model

    monkeypatch.setattr(AutoModel, "from_pretrained", fetched)
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda name, **words: load_processor(folder, **words))
    assert cast(Any, open_encoder("hf:someone/clip", "cpu")).fingerprint == "hf-someone/clip@abc"


def sentences(folder: Path, seed: int = 0) -> str:
    return f"st:{write_clip(folder, seed)}"


def saved_sentences(folder: Path, seed: int = 0) -> str:
    """As sentence-transformers itself lays a model out, its weights in a folder of theirs."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(write_clip(folder.with_name(f"{folder.name}-clip"), seed)), device="cpu")
    model.save(str(folder))
    return f"st:{folder}"


def translator(folder: Path, seed: int = 0) -> Path:
    from embed.translation import calibrate, save_translator
    from embed.translation_nets import TranslationNet

    shape = {"size": 32, "width": 4, "blocks": 1, "attribute_blocks": 2, "attributes": 3}
    torch.manual_seed(seed)
    net = TranslationNet(**shape)
    noise = np.random.default_rng(seed).integers(0, 120, (2, 12, 3, 32, 32))
    calibrate(net, (noise[0].astype(np.uint8), (noise[1] + 130).astype(np.uint8)))
    save_translator(net, ("dark", "light"), shape, folder, {"method": "drit"})
    return folder


ADDRESSES: dict[str, Callable[..., str]] = {
    "artifact": own,
    "content": lambda folder, seed=0: f"content:{translator(folder, seed)}",
    "attribute": lambda folder, seed=0: f"attribute:{translator(folder, seed)}",
    "hf: tokens": vision,
    "hf: cells": cells,
    "hf: the pictures' part": clip,
    "st": sentences,
    "st: saved": saved_sentences,
}


@pytest.fixture(scope="module", params=ADDRESSES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return open_encoder(ADDRESSES[request.param](tmp_path_factory.mktemp("models") / "model"), "cpu")


def test_every_kind_is_held_to_the_contract() -> None:
    assert {name.partition(":")[0] for name in ADDRESSES} == set(KINDS)


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
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES), vectors)
    assert encoder.encode_queries([]).shape == (0, encoder.dim)
    assert encoder.tokens_cut(QUERIES) == encoder.tokens_read(QUERIES) == [0] * 5


def test_more_pictures_than_go_at_once_keep_their_order(encoder: Encoder) -> None:
    # an attribute's axes are whitened, which magnifies rounding; other pictures lie apart by far more
    near = 1e-4 if encoder.fingerprint.endswith("-attribute") else 1e-5
    many = [QUERIES[i % 4] for i in range(AT_ONCE + 3)]
    np.testing.assert_allclose(
        encoder.encode_queries(many), encoder.encode_queries(QUERIES)[np.arange(35) % 4], atol=near
    )


def test_pictures_of_any_shape_are_read_up_to_a_size(encoder: Encoder) -> None:
    shapes = [(1, 1), (1, 300), (300, 1), (200, 120)]
    queries = [Query(str(size), "", media=(Media("image", data=plain(size)),)) for size in shapes]
    vectors = encoder.encode_queries(queries)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    bomb = Query("bomb", "", media=(Media("image", data=saying(9000, 6000)),))
    with pytest.raises(DataError, match="bomb: 9000 x 6000 pixels, at most 50000000 are read"):
        encoder.encode_queries([*queries, bomb])


def test_a_query_without_a_picture_is_named(encoder: Encoder) -> None:
    if not isinstance(encoder, SentenceTransformerEncoder):  # which may read texts as well
        with pytest.raises(DataError, match="q7: no picture"):
            encoder.encode_queries([Query("q7", "words alone")])
    else:
        counts = encoder.tokens_read([Query("", text) for text in ("r", "red", "red " * 500)])
        assert 0 < counts[0] < counts[1] < counts[2] < 500  # it is cut
    with pytest.raises(DataError, match="q8: no picture of a known format"):
        encoder.encode_queries([Query("q8", "", media=(Media("image", data=b"none"),))])


@pytest.mark.parametrize("kind", ADDRESSES)
def test_another_models_vectors_have_another_fingerprint(tmp_path: Path, kind: str) -> None:
    make = ADDRESSES[kind]
    first = open_encoder(make(tmp_path / "a"), "cpu")
    again, other = open_encoder(make(tmp_path / "b"), "cpu"), open_encoder(make(tmp_path / "c", 1), "cpu")
    assert again.fingerprint == first.fingerprint  # of the weights, wherever they lie
    np.testing.assert_array_equal(again.encode_queries(QUERIES), first.encode_queries(QUERIES))
    assert other.fingerprint != first.fingerprint
    assert not np.allclose(other.encode_queries(QUERIES), first.encode_queries(QUERIES), atol=1e-3)


def test_another_size_is_another_fingerprint(tmp_path: Path) -> None:
    fingerprints = set()
    for size in (32, 48):
        torch.manual_seed(0)
        save_backbone(build_backbone("conv", size), tmp_path / str(size), {})
        fingerprints.add(load_image_encoder(tmp_path / str(size), "cpu").fingerprint)
    assert len(fingerprints) == 2


def test_a_model_of_both_finds_pictures_by_text_and_one_of_texts_refuses_pictures(tmp_path: Path) -> None:
    both = open_encoder(f"st:{write_clip(tmp_path / 'clip')}", "cpu")
    mixed = [QUERIES[0], Query("t", "a cat"), QUERIES[1], Query("u", "a dog")]
    vectors = both.encode_queries(mixed)
    for i, query in enumerate(mixed):
        np.testing.assert_allclose(vectors[i], both.encode_queries([query])[0], atol=1e-5)
    assert not np.allclose(vectors[1], vectors[3], atol=1e-4)
    folder = write_encoder(tmp_path / "text", ["some words", "other words"])
    text = open_encoder(f"st:{folder}", "cpu")
    words = [Query("a", "some words"), Query("b", "other words"), Query("c", "")]
    found = text.encode_queries(words)
    assert found.shape == (3, text.dim)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(text.encode_queries(words[1:2])[0], found[1], atol=1e-5)
    with pytest.raises(DataError, match="this model reads no pictures"):
        text.encode_queries(QUERIES)
    assert (
        open_encoder(f"st:{write_encoder(tmp_path / 'other', ['some words', 'other words'], 4)}").fingerprint
        != text.fingerprint
    )


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
