"""The video backbones, the encoder over them, and where in a video a clip's like is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from films import STEP, film, moving, numbered, sound

from embed.localise import localise
from embed.registry import artifact_kind, open_encoder
from embed.video import VideoEncoder, clip_times, load_video_encoder, save_video_backbone
from embed.video_backbones import VIDEO_BACKBONES, build_video_backbone
from embed.video_media import open_video
from udr.errors import ArtifactError, DataError, UnknownNameError
from udr.types import Demonstration, Encoder, Media, Query

TINY = [name for name in VIDEO_BACKBONES if name.endswith("_tiny")]
# weights without the classifier, as torchvision publishes them for R(2+1)D-18, R3D-18 and S3D; features
PUBLISHED = {"r2plus1d_18": (31_300_125, 512), "r3d_18": (33_166_272, 512), "s3d": (7_910_048, 1024)}


@pytest.mark.parametrize("name", TINY)
def test_a_small_backbone_turns_clips_into_features_over_time_and_space(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_video_backbone(name, 24, 8).eval()
    clips = torch.rand(3, 8, 3, 24, 24)
    with torch.inference_mode():
        cells, pooled = backbone(clips), backbone.pooled(clips)
        assert cells.shape[:2] == (3, backbone.dim)
        torch.testing.assert_close(pooled, cells.flatten(2).mean(2))
        # the order of frames and their content are both seen
        assert not torch.allclose(backbone.pooled(clips.flip(1)), pooled, atol=1e-5)
        torch.testing.assert_close(backbone.pooled(clips[1:2])[0], pooled[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in VIDEO_BACKBONES if name not in TINY])
def test_a_published_backbone_has_the_published_shapes(name: str) -> None:
    backbone = build_video_backbone(name, 112, 16)
    weights = sum(p.numel() for p in backbone.parameters())
    if name in PUBLISHED:
        assert (weights, backbone.dim) == PUBLISHED[name]
    meta = backbone.eval().to("meta")
    cells = meta(torch.empty(2, 16, 3, 112, 112, device="meta"))
    side = 4 if name.startswith("s3d") else 7
    assert cells.shape == (2, backbone.dim, 2, side, side)


@pytest.mark.parametrize("name", TINY)
def test_clips_of_any_size_fit_every_backbone(name: str) -> None:
    for size, frames in ((8, 2), (9, 3), (24, 1)):
        backbone = build_video_backbone(name, size, frames).eval()
        assert backbone.pooled(torch.rand(1, frames, 3, size, size)).shape == (1, backbone.dim)


def test_what_is_no_backbone_is_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean r2plus1d"):
        build_video_backbone("r2plus1d", 24, 8)


# -- the encoder


def own(folder: Path, seed: int = 0, name: str = "r3d_tiny", **more: Any) -> VideoEncoder:
    torch.manual_seed(seed)
    backbone = build_video_backbone(name, 24, 4)
    taken = {"rate": 12.0, "pace": 1, "clips": 2} | more
    save_video_backbone(backbone, folder, {"method": "none"}, **taken)
    return load_video_encoder(folder, "cpu")


def shown(number: int) -> Media:
    return Media("video", data=film(moving(number)))


QUERIES = [Query(str(i), "text that is not read", media=(shown(i % 4),)) for i in range(5)]


def test_a_video_encoder_gives_a_unit_vector_a_video_alone_in_a_batch_and_again(tmp_path: Path) -> None:
    own(tmp_path / "m")
    encoder = open_encoder(f"artifact:{tmp_path / 'm'}", "cpu")
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode_queries(QUERIES)
    assert vectors.shape == (5, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-6)  # the same video
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    demonstrations = [Demonstration(q.id, q.input, "out", media=q.media) for q in QUERIES]
    np.testing.assert_allclose(encoder.encode_demonstrations(demonstrations), vectors, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES[2:3])[0], vectors[2], atol=1e-5)
    assert encoder.encode_queries([]).shape == (0, encoder.dim)
    assert encoder.tokens_cut(QUERIES) == encoder.tokens_read(QUERIES) == [0] * 5


def test_a_query_without_a_video_or_with_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    encoder = own(tmp_path / "m")
    for media, words in (
        ((), "q7: no video; "),
        ((Media("image", data=b"x"),), "q7: no video; "),
        ((Media("video", data=b"none"),), "q7: no video that can be read"),
        ((Media("video", data=sound()),), "q7: no pictures in it, only sound"),
        ((Media("video", uri="http://127.0.0.1/x.mp4"),), "q7: .*not fetched"),
    ):
        with pytest.raises(DataError, match=words):
            encoder.encode_queries([Query("q7", "", media=media)])


def test_clips_are_spread_evenly_and_never_overlap() -> None:
    for seconds, clips in ((10.0, 4), (1.0, 4), (0.9, 3), (0.45, 2), (100.0, 3)):
        times = clip_times(seconds, clips, 4, 0.1)
        fit = max(1, min(clips, int(seconds / 0.4 + 1e-6)))
        assert times.shape == (fit, 4)
        assert times.min() >= 0
        assert times.max() < seconds
        if seconds >= 0.4:
            gaps = np.diff(np.concatenate([[0.0 - 1e-9], *[[t[0] - 0.05, t[-1] + 0.05] for t in times], [seconds]]))
            assert (gaps[::2] > -1e-6).all()  # between clips, and at both ends
            np.testing.assert_allclose(gaps[2:-1:2], gaps[2:-1:2].mean() if fit > 1 else 0, atol=1e-6)
    # a video shorter than a clip is shown again from its beginning
    np.testing.assert_allclose(clip_times(0.25, 3, 4, 0.1), [[0.05, 0.15, 0.0, 0.1]], atol=1e-9)
    np.testing.assert_allclose(clip_times(0.0, 3, 4, 0.1), np.zeros((1, 4)))


def test_a_vector_is_the_mean_over_the_clips_that_the_settings_name(tmp_path: Path) -> None:
    encoder = own(tmp_path / "m", pace=2)
    raw = film(numbered(50))
    with open_video(raw) as video:
        clips = encoder.read_clips(video)
    assert clips.shape == (2, 4, 3, 24, 24)
    brightness = clips[:, :, :, 12:].mean((2, 3, 4)) / STEP  # of each frame, its number
    times = clip_times(2.0, 2, 4, 2 / 12)
    np.testing.assert_allclose(brightness, np.floor(times * 25), atol=0.6)
    mean = encoder.encode_clips(clips).mean(0)
    np.testing.assert_allclose(encoder.encode_video(raw), mean / np.linalg.norm(mean), atol=1e-6)


def test_another_encoder_has_another_fingerprint_and_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"seed": 1}, {"pace": 2}, {"rate": 10.0}, {"clips": 1}]
    prints = [own(tmp_path / str(i), **more).fingerprint for i, more in enumerate(kinds)]
    assert len(set(prints)) == len(kinds)
    assert load_video_encoder(tmp_path / "0", "cpu").fingerprint == prints[0]
    assert artifact_kind(f"artifact:{tmp_path / '0'}") == "video"
    assert artifact_kind(f"artifact:{tmp_path}") == ""

    def damaged(change: Callable[[Path], Any]) -> Path:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(tmp_path / "0", tmp_path / "d")
        change(tmp_path / "d")
        return tmp_path / "d"

    def flip(folder: Path) -> None:
        raw = bytearray((folder / "model.safetensors").read_bytes())
        raw[-9] ^= 1
        (folder / "model.safetensors").write_bytes(raw)

    def faster(folder: Path) -> None:
        saved = json.loads((folder / "encoder.json").read_text())
        (folder / "encoder.json").write_text(json.dumps({**saved, "pace": 8}))

    for change in (flip, faster, lambda folder: (folder / "model.safetensors").unlink()):
        with pytest.raises(ArtifactError, match="differ from what was saved"):
            load_video_encoder(damaged(change))


# -- where in a video


def spliced(tmp_path: Path, part: int) -> tuple[Path, Path]:
    """A clip, and a video of five scenes whose scene `part` shows the clip's own frames."""
    scenes = [moving(10 + i, 25, right=i % 2 == 0) for i in range(5)]
    (tmp_path / "clip.mp4").write_bytes(film(scenes[part]))
    (tmp_path / "long.mkv").write_bytes(film(np.concatenate(scenes), "matroska"))
    return tmp_path / "clip.mp4", tmp_path / "long.mkv"


@pytest.mark.parametrize("part", [0, 2, 4])
def test_the_segment_that_shows_the_clip_is_found(tmp_path: Path, part: int) -> None:
    clip, long = spliced(tmp_path, part)
    told: list[tuple[int, int]] = []
    best, second = localise(own(tmp_path / "m"), clip, long, 2, lambda done, total: told.append((done, total)))
    assert abs(best.begin - part) <= 0.1  # scenes last a second
    assert best.end == pytest.approx(best.begin + 1, abs=0.02)
    assert best.score > second.score
    assert abs(best.begin - second.begin) > 0.5
    assert told[-1][1] == 5


def test_a_video_shorter_than_the_clip_is_one_segment(tmp_path: Path) -> None:
    clip, long = spliced(tmp_path, 1)
    (only,) = localise(own(tmp_path / "m"), long, clip, 3)
    assert (only.begin, only.end) == (0.0, 1.0)
    (tiny,) = localise(own(tmp_path / "m"), film(numbered(2)), film(numbered(3)), 3)
    assert tiny.begin == 0.0
    with pytest.raises(DataError, match="no video that can be read"):
        localise(own(tmp_path / "m"), b"none", long)
