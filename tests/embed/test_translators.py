"""Translators: two encoders of one folder, each with a fingerprint of its own; pictures in the other style."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embed.registry import artifact_kind, open_encoder
from embed.translation import Translator, TranslatorEncoder, calibrate, load_translator, save_translator
from embed.translation_nets import TranslationNet
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch, UnknownNameError
from udr.index import FlatIndex
from udr.types import Encoder, Media, Query

SHAPE = {"size": 32, "width": 4, "blocks": 1, "attribute_blocks": 2, "attributes": 3}
STYLES = ("dark", "light")


def pictures(style: int, count: int = 12) -> np.ndarray:
    """Noise, dark or light."""
    noise = np.random.default_rng(style).integers(0, 120, (count, 3, 32, 32))
    return (noise + 130 * style).astype(np.uint8)


def query(pixels: np.ndarray) -> Query:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return Query("q", "", media=(Media("image", data=file.getvalue()),))


@pytest.fixture(scope="module")
def net() -> TranslationNet:
    torch.manual_seed(0)
    made = TranslationNet(**SHAPE)
    calibrate(made, (pictures(0), pictures(1)))
    return made


@pytest.fixture
def folder(net: TranslationNet, tmp_path: Path) -> Path:
    save_translator(net, STYLES, SHAPE, tmp_path / "encoder", {"method": "drit"})
    return tmp_path / "encoder"


@pytest.mark.parametrize("reads", ["content", "attribute"])
def test_each_address_is_an_encoder_with_a_fingerprint_of_its_own(folder: Path, reads: str) -> None:
    encoder = open_encoder(f"{reads}:{folder}", "cpu")
    assert isinstance(encoder, Encoder)
    queries = [query(p) for p in [*pictures(0, 3), *pictures(1, 3)]]
    vectors = encoder.encode_queries(queries)
    assert vectors.shape == (6, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for i, one in enumerate(queries):
        np.testing.assert_allclose(encoder.encode_queries([one])[0], vectors[i], atol=1e-5)
    assert encoder.encode_queries([]).shape == (0, encoder.dim)
    assert encoder.tokens_cut(queries) == [0] * 6
    other = open_encoder(f"{'attribute' if reads == 'content' else 'content'}:{folder}", "cpu")
    assert encoder.fingerprint != other.fingerprint
    index = FlatIndex(encoder.dim, encoder.fingerprint)
    index.add(np.arange(6), vectors, encoder.fingerprint)
    np.testing.assert_array_equal(index.search(vectors, 1, encoder.fingerprint).rows[:, 0], np.arange(6))
    with pytest.raises(FingerprintMismatch):
        index.search(vectors, 1, other.fingerprint)


def test_the_folder_itself_is_no_encoder_and_says_which_there_are(folder: Path) -> None:
    assert artifact_kind(f"artifact:{folder}") == "translation"
    with pytest.raises(ConfigError, match=r"content:.* and attribute:"):
        open_encoder(f"artifact:{folder}", "cpu")
    with pytest.raises(ArtifactError, match="no translator"):
        open_encoder(f"content:{folder.parent}", "cpu")
    with pytest.raises(DataError):
        open_encoder(f"content:{folder}", "cpu").encode_queries([Query("q", "words alone")])


def test_what_is_saved_is_what_is_opened_and_damage_is_told(net: TranslationNet, folder: Path) -> None:
    opened = load_translator(folder, "cpu")
    assert opened.styles == STYLES
    np.testing.assert_array_equal(opened.contents(pictures(0)), Translator(net, STYLES, "").contents(pictures(0)))
    facts = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(facts | {"styles": ["light", "dark"]}))
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_translator(folder, "cpu")
    (folder / "encoder.json").write_text(json.dumps(facts))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_translator(folder, "cpu")


def test_the_line_between_the_styles_means_is_taken_off_contents(net: TranslationNet) -> None:
    own = Translator(net, STYLES, "")
    raw, indexed = [], []
    for style in (0, 1):
        part = torch.from_numpy(pictures(style)).float() / 127.5 - 1
        cells = net.eval().contents(part, 0) + net.contents(part, 1)
        torch.testing.assert_close(net.pooled(part), cells.view(12, 16, 8, 8).flatten(1), atol=1e-5, rtol=1e-4)
        raw.append((net.pooled(part) - net.content_mean).detach())
        indexed.append(raw[-1] @ net.content_axes)
        unit = torch.nn.functional.normalize(indexed[-1], dim=1)
        np.testing.assert_allclose(own.contents(pictures(style)), unit, atol=1e-5)
    between = raw[1].mean(0) - raw[0].mean(0)
    assert between.norm() > 0.1
    assert (indexed[1].mean(0) - indexed[0].mean(0)).norm() < 1e-3 * between.norm()
    # nothing else is lost: there are as many axes as pictures, and distances along them are those without the line
    line = between / between.norm()
    left = torch.cat([x - (x @ line)[:, None] * line for x in raw])
    kept = net.content_axes[:, :22] / net.content_axes[:, :22].norm(dim=0)
    torch.testing.assert_close((left @ kept).norm(dim=1), left.norm(dim=1), rtol=0.02, atol=1e-3)


def test_attributes_tell_which_style_a_picture_looks_to_be_of(net: TranslationNet) -> None:
    own = Translator(net, STYLES, "")
    for style, sign in ((0, -1), (1, 1)):
        part = torch.from_numpy(pictures(style)).float() / 127.5 - 1
        side = net.statistics(part) @ net.style_weight + net.style_bias
        assert side.mean().item() == pytest.approx(sign, abs=1e-2)
        assert (np.sign(own.attributes(pictures(style))[:, -1]) == sign).all()
    read = TranslatorEncoder(own, "attribute").encode_pixels(np.concatenate([pictures(0), pictures(1)]))
    assert (read[:12] @ read[:12].T).min() > (read[:12] @ read[12:].T).max()


def test_content_is_noisy_in_training_alone() -> None:
    torch.manual_seed(0)
    net = TranslationNet(**SHAPE)
    part = torch.zeros(2, 3, 32, 32)
    quiet = net.eval().contents(part, 0)
    torch.testing.assert_close(net.contents(part, 0), quiet)
    noise = net.train().contents(part, 0) - quiet
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_a_translation_depends_on_its_attribute_and_is_the_same_alone(net: TranslationNet) -> None:
    own = Translator(net, STYLES, "")
    pixels = pictures(0, 70)  # more than one forward pass
    attributes = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    made = own.translate(pixels, 1, attributes)
    assert made.shape == pixels.shape
    assert made.dtype == np.uint8
    alone = own.translate(pixels[69:], 1, attributes[69:])
    assert np.abs(alone[0].astype(int) - made[69]).max() <= 1
    assert (own.translate(pixels, 1, -attributes) != made).any()
    assert own.translate(pixels[:0], 1, attributes[:0]).shape == (0, 3, 32, 32)
    assert own.number_of("light") == 1
    with pytest.raises(UnknownNameError, match="light"):
        own.number_of("lightt")


@pytest.mark.parametrize("size", [8, 18])
def test_pictures_that_do_not_fit_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size: {size}"):
        TranslationNet(**(SHAPE | {"size": size}))
