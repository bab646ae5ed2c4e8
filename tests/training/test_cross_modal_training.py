"""Cross-modal training: it goes on after a kill, learns what goes together, adapts encoders, leaves out damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned_things import things, write_things

import training.loop
from embed.backbones import build_backbone
from embed.cross_modal import load_cross_modal
from embed.image import save_backbone
from training.captioned import Captioned, Sound, read_captioned, write_captioned
from training.codes import agreement, perplexity
from training.material import prepare_material
from training.moves import moved_pictures, moved_sounds
from training.pretrain import pretrain
from training.pretrain_cross_modal import build_cross_modal
from training.pretrain_settings import PretrainConfig
from training.retrieval import vectors_of
from udr.encoder import autocast
from udr.errors import ConfigError, DataError, UDRWarning


def config(tmp_path: Path, **other: Any) -> PretrainConfig:
    table = tmp_path / "things.parquet"
    if not table.is_file():
        write_things(table)
    own = {"dim": 16, "out": 16, "width": 16, "codes": 12, "code_matching_weight": 1.0, "languages": ["en"]}
    loop = {"epochs": 2, "batch": 12, "lr": 3e-3, "checkpoint_every": 3, "precision": "float32", "least_spread": 0.0}
    return PretrainConfig.parse(
        {
            "out": tmp_path / other.pop("name", "out"),
            "method": "cross_modal",
            "data": table,
            "split": "train",
            "held_out": "test",
            "size": 16,
            "loop": loop | other.pop("loop", {}),
            "cross_modal": own | other.pop("own", {}),
        }
        | other,
        "test",
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The encoder and the table of a short training."""
    folder = tmp_path_factory.mktemp("learnt")
    write_things(folder / "things.parquet", 48, 30)
    own = config(folder, loop={"epochs": 30}, own={"code_matching_weight": 4.0, "warm_start": 0.15})
    return pretrain(own, "cpu"), own.data


def test_unseen_things_are_found_by_what_they_share_in_every_direction(learnt: tuple[Path, Path]) -> None:
    encoder, rows = load_cross_modal(learnt[0], "cpu"), read_captioned(learnt[1], "test")
    labels = np.array([row.label for row in rows])
    vectors = {m: vectors_of(encoder, rows, m, "en")[1] for m in encoder.modalities}
    for a in vectors:
        for b in vectors:
            nearest = (vectors[a] @ vectors[b].T).argmax(1)
            assert (labels[nearest] == labels).mean() > 0.75, (a, b)  # chance is a third
    assert perplexity(encoder, rows, "en") > 12 / 10


def test_code_matching_makes_one_concept_of_the_same_codes(learnt: tuple[Path, Path], tmp_path: Path) -> None:
    own = config(tmp_path, data=learnt[1], loop={"epochs": 12}, own={"code_matching_weight": 0.0, "warm_start": 0.15})
    rows = read_captioned(learnt[1], "test")
    matched, unmatched = (
        agreement(load_cross_modal(folder, "cpu"), rows, "en") for folder in (learnt[0], pretrain(own, "cpu"))
    )
    assert list(matched) == ["image=text", "image=audio", "text=audio"]
    for pair, found in matched.items():
        assert found["overlap"] > found["overlap_of_others"] + 0.2
        assert found["overlap"] > unmatched[pair]["overlap"] + 0.1


def test_a_finished_training_says_how_it_went_and_is_left_alone(learnt: tuple[Path, Path]) -> None:
    saved = json.loads((learnt[0] / "encoder.json").read_text())
    lines = [json.loads(line) for line in (learnt[0].parent / "metrics.jsonl").read_text().splitlines()]
    assert saved["recall_at_10"] == lines[-1]["recall_at_10"] > 0.5
    assert saved["things"] == 48
    assert lines[0]["cmcm"] == lines[0]["commitment"] == 0  # codes begin after the continuous part
    assert lines[-1]["cmcm"] > 0
    assert lines[-1]["mms"] < lines[0]["mms"]


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_cross_modal(pretrain(config(tmp_path, name="whole"), "cpu"), "cpu")
    own, step, taken = config(tmp_path, name="killed"), training.loop._step, iter(range(100))

    def dying(*words: Any) -> Any:
        if next(taken) == 5:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(training.loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(own, "cpu")
    assert (own.out / "checkpoint").is_file()
    monkeypatch.setattr(training.loop, "_step", step)
    again = load_cross_modal(pretrain(own, "cpu"), "cpu").net.state_dict()
    assert not (own.out / "checkpoint").exists()
    for name, weights in whole.net.state_dict().items():
        assert weights.equal(again[name]), name


def test_losses_are_their_sum_and_are_computed_in_full(tmp_path: Path) -> None:
    own = config(tmp_path, own={"code_matching_weight": 0.7, "commitment": 0.3})
    material = prepare_material(things(12), 16, own.cross_modal.modalities, ("en",), {})
    found = []
    for mixed in (False, True):
        method = build_cross_modal(own, material, {})
        torch.manual_seed(1)
        with autocast(torch.device("cpu"), mixed):
            losses = method(torch.arange(12), 0.5)
        assert all(value.dtype == torch.float32 for value in losses.values())
        expected = losses["mms"] + 0.7 * losses["cmcm"] + 0.3 * losses["commitment"]
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert 1 <= losses["perplexity"] <= 12
        found.append(losses["mms"].item())
    assert found[0] == pytest.approx(found[1], rel=0.05)
    alone = build_cross_modal(config(tmp_path, own={"codes": 0}), material, {})
    assert alone(torch.arange(12), 0.9)["commitment"].item() == 0


def test_things_without_a_modality_teach_by_those_that_they_have(tmp_path: Path) -> None:
    rows = [replace(row, sounds=()) if i % 2 else row for i, row in enumerate(things(12))]
    rows[0] = replace(rows[0], captions=(("en", "  "), ("fr", "un disc")))
    own = config(tmp_path)
    material = prepare_material(rows, 16, own.cross_modal.modalities, ("en",), {})
    there, _ = material.variants["audio"].drawn(torch.arange(12))
    assert there.tolist() == [i % 2 == 0 for i in range(12)]
    there, _ = material.variants["text"].drawn(torch.arange(12))
    assert there.tolist() == [i > 0 for i in range(12)]  # an empty caption is none
    loss = build_cross_modal(own, material, {})(torch.arange(12), 0.5)["loss"]
    assert loss.isfinite()


def test_what_cannot_be_read_is_left_out_with_a_line_and_counted() -> None:
    rows = things(6)
    rows[1] = replace(rows[1], image=b"no picture")
    rows[2] = replace(rows[2], sounds=(Sound("en", "human", b"no sound"), rows[2].sounds[0]))
    with pytest.warns(UDRWarning, match="left out: train/") as told:
        material = prepare_material(rows, 16, ("image", "text", "audio"), ("en",), {})
    assert material.left_out == len(told) == 2
    starts = {m: v.starts.diff().tolist() for m, v in material.variants.items()}
    assert starts["image"] == [1, 0, 1, 1, 1, 1]
    assert starts["audio"] == [1] * 6
    with (
        pytest.warns(UDRWarning),
        pytest.raises(DataError, match=r"nothing of 1 rows has two of image, audio"),
    ):
        prepare_material(rows[1:2], 16, ("image", "audio"), ("en",), {})


def test_a_frozen_sentence_encoder_teaches_the_rest(tmp_path: Path, bert_folder: Path) -> None:
    own = config(tmp_path, own={"frozen": {"text": f"st:{bert_folder}"}, "slots": 2}, loop={"epochs": 30})
    folder = pretrain(own, "cpu")
    encoder, rows = load_cross_modal(folder, "cpu"), read_captioned(own.data, "test")
    labels = np.array([row.label for row in rows])
    found = (vectors_of(encoder, rows, "text", "en")[1] @ vectors_of(encoder, rows, "audio", "en")[1].T).argmax(1)
    assert (labels[found] == labels).mean() > 0.6
    assert not [name for name in encoder.net.state_dict() if "groups" in name]  # no text network of ours


def test_pictures_and_sounds_may_be_read_by_frozen_encoders_too(tmp_path: Path, learnt: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    save_backbone(build_backbone("conv", 16), tmp_path / "conv", {})
    rows = things(24)
    rows[3] = replace(rows[3], image=b"no picture")
    write_captioned(tmp_path / "some.parquet", [*rows, *things(6, 1, "test")])
    frozen = {"image": f"artifact:{tmp_path / 'conv'}", "audio": f"artifact:{learnt[0]}"}
    with (
        pytest.warns(UDRWarning, match="left out: train/3"),
        pytest.warns(UDRWarning, match="^1 pictures and sounds left out$"),
    ):
        folder = pretrain(config(tmp_path, data=tmp_path / "some.parquet", own={"frozen": frozen}), "cpu")
    encoder = load_cross_modal(folder, "cpu")
    for modality in encoder.modalities:
        there, vectors = vectors_of(encoder, things(6, 1, "test"), modality, "en")
        assert len(there) == 6
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_settings_that_do_not_fit_are_told(tmp_path: Path) -> None:
    cases = [
        ({"modalities": ["image"]}, "expected two or three"),
        ({"modalities": ["image", "text"], "frozen": {"audio": "st:x"}}, "not among modalities"),
        ({"frozen": {"text": "st:/nowhere/at/all"}}, "cannot be loaded"),
    ]
    for own, words in cases:
        with pytest.raises(ConfigError, match=words):
            pretrain(config(tmp_path, own=own), "cpu")
    write_things(tmp_path / "few.parquet", 9)
    with pytest.raises(ConfigError, match="12 things in a step, and there are 9"):
        pretrain(config(tmp_path, data=tmp_path / "few.parquet"), "cpu")


def test_a_table_comes_back_as_it_was_written_and_its_faults_are_named(tmp_path: Path) -> None:
    rows = [*things(2), *things(1, 1, "test")]
    assert write_captioned(tmp_path / "a.parquet", rows) == 3
    assert read_captioned(tmp_path / "a.parquet") == rows
    assert read_captioned(tmp_path / "a.parquet", "test") == rows[2:]
    with pytest.raises(DataError, match="no rows of split valid"):
        read_captioned(tmp_path / "a.parquet", "valid")
    write_captioned(tmp_path / "b.parquet", [rows[0], rows[0]])
    with pytest.raises(DataError, match=r"b.parquet:2: id 'train/0' stands twice"):
        read_captioned(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="not Parquet"):
        read_captioned(tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"expected a \.parquet"):
        read_captioned(tmp_path)
    assert rows[0].texts(["fr"]) == ["un disc"]
    assert Captioned("x", b"", (("en", " "),)).texts() == []


def test_moved_pictures_stay_pictures_and_white_stays_one_colour() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(16, 3, 20, 20)
    moved = moved_pictures(pictures, 16, composed=1.0)
    assert moved.shape == (16, 3, 16, 16)
    assert 0 <= moved.min() < moved.max() <= 1
    white = moved_pictures(torch.ones(8, 3, 20, 20), 16, composed=0.5)
    assert (white.amax((1, 2, 3)) - white.amin((1, 2, 3))).max() < 1e-5
    torch.manual_seed(3)
    first = moved_pictures(pictures, 16, 0.5)
    torch.manual_seed(3)
    assert first.equal(moved_pictures(pictures, 16, 0.5))


def test_moved_sounds_keep_silence_behind_them() -> None:
    torch.manual_seed(0)
    frames, lengths = torch.rand(5, 50, 40) + 1, torch.tensor([50, 40, 30, 3, 1])
    frames = frames * (torch.arange(50)[None] < lengths[:, None])[..., None]
    moved, longer = moved_sounds(frames, lengths)
    assert moved.shape[2] == 40
    assert (longer >= 1).all()
    assert longer[0] > longer[1] > longer[2]
    assert 0.8 < longer[0] / 50 < 1.25
    for sound, length in zip(moved, longer, strict=True):
        assert not sound[length:].any()
        assert sound[:length].any() or length < 15  # a gap may swallow a very short one
