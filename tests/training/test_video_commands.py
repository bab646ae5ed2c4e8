"""Videos are read once and in order, and the commands over them: embed, probe, localise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from films import film, moving, number_of, numbered, sound, write_films
from workbench import Outcome

from embed.video import load_video_encoder, save_video_backbone
from embed.video_backbones import build_video_backbone
from training.clips import middle_clips, prepare_videos
from training.probe_videos import first_ranks
from udr.errors import ArtifactError, DataError

Command = Callable[..., Outcome]


def test_a_folder_is_decoded_once_at_an_even_rate_and_what_is_no_video_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "b").mkdir()
    (source / "a" / "1.mp4").write_bytes(film(numbered(50)))
    (source / "a" / "2.mkv").write_bytes(film(numbered(8), "matroska", stamps=[0, 0.1, 0.9, 1.0, 1.05, 1.5, 1.6, 2.0]))
    (source / "b" / "3.avi").write_bytes(film(numbered(10), "avi", "mpeg4", rate=5))
    (source / "b" / "broken.mp4").write_bytes(b"no video")
    (source / "b" / "sound.mp4").write_bytes(sound())
    (source / "b" / "notes.txt").write_text("not looked at")
    found = prepare_videos(source, 24, 5.0, 60.0, tmp_path / "cache")
    assert found.names == ("a/1.mp4", "a/2.mkv", "b/3.avi")
    assert found.labels == ("a", "a", "b")
    assert (found.unread, len(found), found.side) == (2, 3, 24)
    assert [line.partition(":")[0] for line in found.left_out] == ["b/broken.mp4", "b/sound.mp4"]
    shown = [[number_of(f) for f in found.clip(i, 0, 1, found.length(i))] for i in range(3)]
    assert shown[0] == [2, 7, 12, 17, 22, 27, 32, 37, 42, 47]
    assert shown[1][:10] == [1, 1, 1, 1, 2, 4, 4, 5, 6, 6]
    assert shown[2] == list(range(10))
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    prepare_videos(source, 24, 5.0, 60.0, tmp_path / "cache")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == stamp
    (source / "b" / "broken.mp4").write_bytes(film(numbered(5)))  # mended: read anew
    assert len(prepare_videos(source, 24, 5.0, 60.0, tmp_path / "cache")) == 4


def test_of_a_long_video_the_middle_is_kept(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "long.mp4").write_bytes(film(numbered(50), rate=1, keys=4))
    found = prepare_videos(tmp_path / "v", 16, 1.0, 10.0, tmp_path / "cache")
    assert [number_of(f) for f in found.frames] == list(range(20, 30))
    assert found.labels is None


def test_a_clip_begins_again_after_the_last_frame_and_the_middle_one_is_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(film(numbered(50)))
    found = prepare_videos(tmp_path / "v", 24, 25.0, 60.0, tmp_path / "cache")
    assert [number_of(f) for f in found.clip(0, 46, 2, 4)] == [46, 48, 0, 2]
    middle = middle_clips(found, np.array([0]), 4, 3, 16)
    assert middle.pixels.shape == (1, 4, 3, 16, 16)
    pixels = np.asarray(middle.pixels[:1])
    assert [number_of(f) for f in pixels[0]] == [20, 23, 26, 29]


def test_many_videos_are_decoded_by_several_processes_in_their_order(tmp_path: Path) -> None:
    write_films(tmp_path / "v", 12)
    one, two = (prepare_videos(tmp_path / "v", 16, 25.0, 60.0, tmp_path / str(n), workers=n) for n in (1, 2))
    assert one.names == two.names
    np.testing.assert_array_equal(one.frames, two.frames)


def test_a_source_without_videos_or_a_damaged_array_is_told(tmp_path: Path) -> None:
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "x.mp4").write_bytes(b"x")
    for source, words in (("nowhere", "expected a folder"), ("empty", "no videos"), ("broken", "none of 1 videos can")):
        with pytest.raises(DataError, match=words):
            prepare_videos(tmp_path / source, 16, 5.0, 60.0, tmp_path / "cache")
    write_films(tmp_path / "v", 2)
    prepare_videos(tmp_path / "v", 16, 5.0, 60.0, tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*.frames")
    array.write_bytes(b"short")
    with pytest.raises(ArtifactError, match="damaged"):
        prepare_videos(tmp_path / "v", 16, 5.0, 60.0, tmp_path / "cache")


# -- commands


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    backbone = build_video_backbone("r3d_tiny", 16, 4)
    save_video_backbone(backbone, tmp_path / "encoder", {"method": "none"}, rate=25, pace=2, clips=2)
    return f"artifact:{tmp_path / 'encoder'}"


@pytest.mark.filterwarnings("default:left out")
def test_videos_of_a_folder_and_a_single_clip_are_embedded(tmp_path: Path, encoder: str, udr: Command) -> None:
    write_films(tmp_path / "v", 4)
    (tmp_path / "v" / "down" / "zero.mp4").write_bytes(film(numbered(0)))
    out = tmp_path / "v.parquet"
    told = udr("embed", tmp_path / "v", "--encoder", encoder, "--out", out)
    assert told.out.strip() == f"{out}: 4 videos; 1 could not be read"
    assert "left out: down/zero.mp4: no pictures in it" in told.err
    table = pq.read_table(out)
    own = load_video_encoder(tmp_path / "encoder", "cpu")
    assert table["name"].to_pylist() == ["down/001.mp4", "down/003.mp4", "right/000.mp4", "right/002.mp4"]
    assert table["label"].to_pylist() == ["down"] * 2 + ["right"] * 2
    for name, vector in zip(table["name"].to_pylist(), table["vector"].to_pylist(), strict=True):
        np.testing.assert_allclose(vector, own.encode_video(tmp_path / "v" / name), atol=1e-6)
    clip = tmp_path / "v" / "right" / "000.mp4"
    assert udr("embed", clip, "--encoder", encoder, "--out", out).out.strip() == f"{out}: 1 videos"
    assert pq.read_table(out)["name"].to_pylist() == ["000.mp4"]
    (tmp_path / "none").mkdir()
    assert "none of 0 videos" in udr("embed", tmp_path / "none", "--encoder", encoder, "--out", out).complaint


@pytest.mark.filterwarnings("default:left out")
def test_a_probe_tells_accuracies_beside_pixels_and_an_untrained_encoder(
    tmp_path: Path, encoder: str, udr: Command
) -> None:
    write_films(tmp_path / "v", 30)
    (tmp_path / "v" / "down" / "broken.mp4").write_bytes(b"x")
    told = udr("probe", tmp_path / "v", "--encoder", encoder, "--k", 3, "--json")
    rows = json.loads(told.out)
    assert set(rows) == {"pixels", "untrained", "encoder"}
    assert all(0 <= value <= 1 for row in rows.values() for name, value in row.items() if name != "median_rank")
    assert all(row["R@1"] <= row["R@5"] <= row["R@10"] and row["median_rank"] >= 1 for row in rows.values())
    assert "left out: down/broken.mp4" in told.err
    write_films(tmp_path / "w" / "train", 8)
    write_films(tmp_path / "w" / "test", 4)
    table = udr("probe", tmp_path / "w", "--encoder", encoder, "--k", 3).out
    assert "R@1" in table
    same = json.loads(udr("probe", tmp_path / "w", "--encoder", encoder, "--k", 3, "--json").out)
    assert same["encoder"]["R@1"] == same["encoder"]["median_rank"] == 1.0  # the test films are among the others
    alone = ("probe", tmp_path / "w", "--encoder", encoder, "--no-untrained", "--json")
    assert set(json.loads(udr(*alone).out)) == {"pixels", "encoder"}
    other = ("probe", tmp_path / "w", "--encoder", encoder, "--k", 3, "--seed", 1, "--json")
    seeded = json.loads(udr(*other).out)
    assert seeded["encoder"] == same["encoder"]
    for option in (("--probes", "knn"), ("--language", "en"), ("--alone", encoder)):
        refused = udr("probe", tmp_path / "w", "--encoder", encoder, *option)
        assert refused.code == 2
        assert f"{option[0]}: says nothing of an encoder of videos, which takes --split, --asked" in refused.complaint
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.mp4").write_bytes(film(numbered(5)))
    assert "in a folder a class" in udr("probe", tmp_path / "flat", "--encoder", encoder).complaint
    assert "expected a folder" in udr("probe", tmp_path / "nowhere", "--encoder", encoder).complaint


def test_the_first_of_a_class_is_counted_in_plain_loops() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(12, 5)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32)
    classes, answers = np.arange(12) % 3, np.array([0, 1, 2, 0, 1, 7])
    for query, answer, rank in zip(queries, answers, first_ranks(bank, classes, queries, answers), strict=True):
        near = sorted(range(12), key=lambda i: -float(bank[i] @ query) / float(np.linalg.norm(bank[i])))
        assert rank == next((n for n, i in enumerate(near, 1) if classes[i] == answer), 13)


def test_localise_prints_the_segment(tmp_path: Path, encoder: str, udr: Command) -> None:
    scenes = [moving(i, 25) for i in range(4)]
    (tmp_path / "clip.mp4").write_bytes(film(scenes[2]))
    (tmp_path / "long.mp4").write_bytes(film(np.concatenate(scenes)))
    words = ("localise", tmp_path / "clip.mp4", tmp_path / "long.mp4", "--encoder", encoder)
    best, other = json.loads(udr(*words, "--top", 2, "--json").out)
    assert best["begin"] == pytest.approx(2.0, abs=0.1)
    assert best["score"] > other["score"]
    assert " s to " in udr(*words).out
    assert "no video encoder" in udr(*words[:3], "--encoder", "hf:x").complaint
    assert "cannot be read" in udr("localise", tmp_path / "no.mp4", words[2], "--encoder", encoder).complaint
