"""One space for pictures, words and sounds: the same vector alone or in a batch, and files that are checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned_things import drawing, tone

from embed.audio import MELS
from embed.cross_modal import CrossModalEncoder, CrossModalNet, build_net, load_cross_modal, padded, save_cross_modal
from embed.registry import open_encoder
from embed.towers import grams_of, words_of
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch, UDRError
from udr.types import Demonstration, Encoder, Media, Query

SHAPE: dict[str, Any] = {
    "modalities": ["image", "text", "audio"], "backbone": "conv", "size": 32, "dim": 12, "out": 20, "codes": 8,
    "width": 16, "slots": 2, "frozen": {}, "patience": 50,
}  # fmt: skip
RNG = np.random.default_rng(0)
QUERIES = [
    Query("t0", "a cat"),
    Query("i0", "not read", media=(Media("image", data=drawing("disc", RNG)),)),
    Query("a0", "", media=(Media("audio", data=tone(300, RNG)),)),
    Query("t1", "A rather long caption of one dog, who sits; and waits for more than the others do"),
    Query("i1", "", media=(Media("image", data=drawing("stripes", RNG)),)),
    Query("a1", "", media=(Media("audio", data=tone(2000, RNG, 44_100)),)),
    Query("t2", "?!"),
]


def saved(folder: Path, seed: int = 0, **other: Any) -> Path:
    torch.manual_seed(seed)
    shape = {**SHAPE, **other}
    net = build_net(**shape)
    if net.codes:
        net.quantizer.begun.fill_(True)
    for module in net.modules():  # as after training, when running statistics are no longer 0 and 1
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.bias.data.normal_(0, 0.3)
    save_cross_modal(net, folder, {**shape, "frozen_encoders": {}}, {"method": "none"})
    return folder


@pytest.fixture(params=[8, 0], ids=["codes", "continuous"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    return open_encoder(f"artifact:{saved(tmp_path / 'm', codes=request.param)}", "cpu")


def test_any_query_has_a_unit_vector_that_is_the_same_alone_in_a_batch_and_again(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode_queries(QUERIES)
    assert vectors.shape == (len(QUERIES), 20)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for i, query in enumerate(QUERIES):
        np.testing.assert_allclose(encoder.encode_queries([query])[0], vectors[i], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES[::-1])[::-1], vectors, atol=1e-5)
    assert np.linalg.norm(vectors[:, None] - vectors[None], axis=2)[~np.eye(len(QUERIES), dtype=bool)].min() > 1e-3
    assert encoder.encode_queries([]).shape == (0, 20)
    assert encoder.tokens_cut(QUERIES) == [0] * len(QUERIES)
    assert encoder.tokens_read(QUERIES) == [2, 0, 0, 17, 0, 0, 1]


def test_a_demonstration_is_what_it_shows_or_says(encoder: Encoder) -> None:
    made = [Demonstration(q.id, q.input, "answer", media=q.media) for q in QUERIES]
    np.testing.assert_allclose(encoder.encode_demonstrations(made), encoder.encode_queries(QUERIES), atol=1e-6)


def test_the_vector_is_two_linear_maps_summed(tmp_path: Path) -> None:
    encoder = load_cross_modal(saved(tmp_path / "m"), "cpu")
    net = encoder.net
    for query in QUERIES[:3]:
        modality = {"t": "text", "i": "image", "a": "audio"}[query.id[0]]
        with torch.no_grad():
            encoded = net.encode(modality, encoder.inputs(modality, [query]))  # type: ignore[arg-type]
            places = encoded.features[encoded.valid]
            codes = net.quantizer.codebook[torch.cdist(places, net.quantizer.codebook).argmin(1)]
            expected = encoded.whole[0] + net.discrete.weight @ codes.mean(0) + net.discrete.bias
        np.testing.assert_allclose(encoder.encode_queries([query])[0], expected / expected.norm(), atol=1e-5)


def test_code_probabilities_are_of_cells_words_and_frames(tmp_path: Path) -> None:
    encoder = load_cross_modal(saved(tmp_path / "m"), "cpu")
    found = encoder.code_probabilities(QUERIES)
    assert len(found[0]) == 2  # words
    assert len(found[3]) == len(words_of(QUERIES[3].input))
    (cells,) = encoder.code_probabilities([QUERIES[1]], blank=True)
    assert len(cells) == encoder.side**2 == 16
    there = cells.any(1)
    assert 0 < there.sum() < 16  # the disc does not reach every corner of its white ground
    np.testing.assert_allclose(cells[there], found[1], atol=1e-6)
    for one in found:
        np.testing.assert_allclose(one.sum(1), 1, atol=1e-5)
    for query, one in zip(QUERIES, found, strict=True):
        np.testing.assert_allclose(encoder.code_probabilities([query])[0], one, atol=1e-4)
    with pytest.raises(ConfigError, match="without codes"):
        load_cross_modal(saved(tmp_path / "n", codes=0), "cpu").code_probabilities(QUERIES)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    encoder = load_cross_modal(saved(tmp_path / "m"), "cpu")
    deaf = load_cross_modal(saved(tmp_path / "d", modalities=["image", "text"]), "cpu")
    cases: list[tuple[CrossModalEncoder, Query, str]] = [
        (encoder, Query("q1", " \n"), "q1: nothing to read"),
        (encoder, Query("q2", "", media=(Media("audio", data=b"no"),)), "q2: no sound that can be read"),
        (encoder, Query("q3", "", media=(Media("image", data=b"no"),)), "q3: no picture"),
        (deaf, QUERIES[2], "a0: the encoder reads image, text, and this is audio"),
    ]
    for one, query, words in cases:
        with pytest.raises(DataError, match=words):
            one.encode_queries([QUERIES[0], query])


def test_words_are_read_in_any_script_and_unknown_ones_differ() -> None:
    assert words_of("Une cathédrale, l’été !") == ["une", "cathédrale", "l", "été"]
    assert words_of("Собор.") == ["собор"]
    assert len(words_of("word " * 100)) == 24
    grams = grams_of(["cat", "cats", "собор", "two words"])
    assert grams.shape[:2] == (4, 2)
    assert not grams[0, 1].any()
    shared = set(grams[0, 0].tolist()) & set(grams[1, 0].tolist()) - {0}
    assert shared  # `cat` and `cats` have letter groups in common


def test_another_encoder_has_another_fingerprint_and_damage_is_refused(tmp_path: Path) -> None:
    folders = [saved(tmp_path / "a"), saved(tmp_path / "b", seed=1), saved(tmp_path / "c", size=64)]
    assert len({load_cross_modal(folder, "cpu").fingerprint for folder in folders}) == 3

    def damaged(**changed: Any) -> Path:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(folders[0], tmp_path / "d")
        known = json.loads((tmp_path / "d" / "encoder.json").read_text())
        (tmp_path / "d" / "encoder.json").write_text(json.dumps(known | changed))
        return tmp_path / "d"

    raw = bytearray((folders[0] / "model.safetensors").read_bytes())
    cases: list[tuple[Path, type[UDRError], str]] = [
        (damaged(kind="image"), ArtifactError, "no cross-modal encoder"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind, match=words):
            load_cross_modal(path, "cpu")
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_cross_modal(damaged(shape={**SHAPE, "size": 64, "frozen_encoders": {}}), "cpu")
    with pytest.raises(ArtifactError, match="not the weights of such an encoder"):
        load_cross_modal(damaged(shape={**SHAPE, "dim": 13, "frozen_encoders": {}}), "cpu")
    raw[-9] ^= 1
    (damaged() / "model.safetensors").write_bytes(raw)
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_cross_modal(tmp_path / "d", "cpu")


def test_an_adapter_over_frozen_encoders_serves_and_knows_them_again(tmp_path: Path, bert_folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    shutil.copytree(bert_folder, tmp_path / "bert")
    addresses = {"text": f"st:{tmp_path / 'bert'}", "image": f"hf:{tmp_path / 'vit'}"}
    opened = {name: open_encoder(address, "cpu") for name, address in addresses.items()}
    shape = {**SHAPE, "frozen": {name: encoder.dim for name, encoder in opened.items()}}
    net = build_net(**shape)
    net.quantizer.begun.fill_(True)
    kept = {name: {"address": addresses[name], "fingerprint": e.fingerprint} for name, e in opened.items()}
    save_cross_modal(net, tmp_path / "m", {**shape, "frozen_encoders": kept}, {})
    encoder = load_cross_modal(tmp_path / "m", "cpu")
    vectors = encoder.encode_queries(QUERIES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES[:1])[0], vectors[0], atol=1e-5)
    assert [len(p) for p in encoder.code_probabilities(QUERIES[:2])] == [2, 2]  # slots
    assert isinstance(net, CrossModalNet)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")  # other weights under the same name
    with pytest.raises(FingerprintMismatch, match="another model than the one this was trained on"):
        load_cross_modal(tmp_path / "m", "cpu")


def test_no_sounds_are_a_batch_of_none() -> None:
    frames, lengths = padded([])
    assert frames.shape == (0, 1, MELS)
    assert lengths.shape == (0,)
