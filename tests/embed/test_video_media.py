"""Videos of every kind give the frames on show at a time, upright; what cannot be read is refused in one line."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from films import STEP, film, moving, number_of, numbered, sound

import embed.video_media
from embed.video_media import open_video
from udr.errors import DataError
from udr.types import Media


def read(source: bytes | Path | Media, times: list[float], side: int = 32) -> list[int]:
    with open_video(source) as video:
        return [number_of(frame) for frame in video.frames(times, side)]


def told(source: bytes | Path | Media, times: list[float] | None = None) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(DataError) as caught, open_video(source, "film 7") as video:
        video.frames(times or np.arange(0, video.seconds, 0.02).tolist(), 16)
    assert str(caught.value).startswith("film 7: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("mpegts", "mpeg2video")],
)
def test_the_frame_on_show_at_a_time_is_read_from_every_kind_of_file(kind: str, codec: str) -> None:
    raw = film(numbered(50), kind, codec)
    with open_video(raw) as video:
        assert video.seconds == pytest.approx(2.0, abs=0.05)
    times = [0.02, 0.06, 0.5, 0.5, 1.0, 1.94]
    assert read(raw, times) == [0, 1, 12, 12, 25, 48]


def test_a_variable_rate_is_sampled_by_time_and_not_by_frame() -> None:
    stamps = [0, 0.1, 0.9, 1.0, 1.05, 2.5, 2.6, 3.0]
    raw = film(numbered(8), stamps=stamps)
    times = np.arange(0.05, 3.0, 0.1).tolist()
    expected = [max(i for i, stamp in enumerate(stamps) if stamp <= time + 1e-6) for time in times]
    assert read(raw, times) == expected
    assert expected.count(4) > 10  # one frame stands for more than a second


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_a_video_that_lies_on_its_side_is_put_upright(turn: int) -> None:
    with open_video(film(numbered(4), turn=turn)) as video:
        pixels = video.frames([0.1], 32)[0]
    whole = np.zeros((32, 32))
    whole[:12, :6] = 1  # the bright quarter of the middle square, before it is turned
    expected = np.rot90(whole, turn // 90)
    bright = pixels.mean(0) > 150
    assert (bright == expected).mean() > 0.95


def test_a_long_video_is_sought_in_and_not_decoded_as_a_whole() -> None:
    raw = film(numbered(50), rate=1, keys=4)  # fifty seconds
    with open_video(raw) as video:
        before = video._left
        found = [number_of(frame) for frame in video.frames([1.5, 25.5, 45.5], 32)]
        decoded = (before - video._left) // (48 * 64)
    assert found == [1, 25, 45]
    assert decoded < 20
    # the same where each frame is read on the way
    assert read(raw, [i + 0.5 for i in range(50)]) == list(range(50))


def test_times_may_go_back_and_the_last_frame_stays_on_show() -> None:
    raw = film(numbered(50))
    with open_video(raw) as video:
        assert [number_of(video.frames([t], 16)[0]) for t in (1.5, 0.1, 1.9, 2.3)] == [37, 2, 47, 49]


def test_what_cannot_be_read_is_one_line_that_says_why(tmp_path: Path) -> None:
    whole = film(numbered(50))
    early = film(numbered(50), options={"movflags": "faststart"})
    assert "empty" in told(b"")
    assert "no video that can be read" in told(b"no video at all" * 20)
    assert "no video that can be read" in told(whole[: len(whole) // 2])  # its index stood at the end
    assert "only sound" in told(sound())
    assert "only sound" in told(sound("wav", "pcm_s16le"))
    assert "no pictures in it" in told(film(numbered(0)))
    assert "no frame in it" in told(film(numbered(0), "avi", "mpeg4"))
    assert "damaged after" in told(early[: len(early) // 2])
    half = film(numbered(50), "matroska")
    assert re.search(r"ends after 0\.\d\d of 2\.00 s", told(half[: len(half) // 2]))
    assert "cannot be read" in told(tmp_path / "nowhere.mp4")
    assert "not fetched" in told(Media("video", uri="http://127.0.0.1/x.mp4"))


def test_flipped_bits_are_told_or_not_seen_and_never_anything_else() -> None:
    whole, rng = film(moving(0, 50)), np.random.default_rng(0)
    lines = []
    for _ in range(30):
        raw = bytearray(whole)
        for place in rng.integers(60, len(raw), 30):
            raw[place] ^= 1 << int(rng.integers(8))
        try:
            with open_video(bytes(raw), "film 7") as video:
                video.frames(np.arange(0, video.seconds, 0.02).tolist(), 16)
        except DataError as error:
            lines.append(str(error))
    assert all(line.startswith("film 7: ") and "\n" not in line for line in lines)
    assert sum("damaged after" in line for line in lines) > 10


def test_files_that_name_others_are_not_followed(tmp_path: Path) -> None:
    real = tmp_path / "real.mp4"
    real.write_bytes(film(numbered(5)))
    lists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{real}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {real}\n",
        f'<?xml version="1.0"?><MPD><Period><BaseURL>{real}</BaseURL></Period></MPD>',
    )
    for text in lists:
        assert "no video that can be read" in told(text.encode())
        (tmp_path / "list.mp4").write_text(text)
        assert "no video that can be read" in told(tmp_path / "list.mp4")


def test_limits_of_bytes_pixels_length_and_work_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = film(numbered(50))
    (tmp_path / "a.mp4").write_bytes(raw)
    for name, value, words in (
        ("MAX_SENT", 1000, "bytes, at most 1000 are read"),
        ("MAX_FRAME", 1000, "frames of 64 x 48 pixels, at most 1000"),
        ("MAX_SECONDS", 1.0, "2 seconds, at most 1 are read"),
        ("SENT_WORK", 20 * 64 * 48, "too many frames to decode"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(embed.video_media, name, value)
            assert words in told(raw)
            if name in ("MAX_FRAME", "MAX_SECONDS"):
                assert words in told(tmp_path / "a.mp4")
            else:
                assert read(tmp_path / "a.mp4", [0.02]) == [0]


def test_media_carry_their_bytes_or_a_data_uri() -> None:
    raw = film(numbered(10))
    uri = "data:video/mp4;base64," + base64.b64encode(raw).decode()
    for media in (Media("video", data=raw), Media("video", uri=uri)):
        assert read(media, [0.02, 0.3]) == [0, 7]


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (16, 320), (320, 16), (50, 50)])
def test_frames_are_their_middle_squares(shape: tuple[int, int]) -> None:
    height, width = shape
    frames = np.zeros((3, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    with open_video(film(frames)) as video:
        pixels = video.frames([0.0], 24)[0]
    assert pixels.shape == (3, 24, 24)
    cut = min(shape)
    left = (width - cut) // 2
    ramp = frames[0, 0, left : left + cut, 0]
    row = pixels[0, 12].astype(int)
    assert abs(row.mean() - ramp.mean()) < 16
    assert np.abs(row - np.interp(np.linspace(0, cut - 1, 24), np.arange(cut), ramp)).mean() < 20


def test_pixels_that_are_wider_than_high_are_shown_so() -> None:
    frames = np.zeros((3, 48, 32, 3), np.uint8)
    frames[:, :, 12:20] = 255  # a quarter of the width, so a third of the middle square of 64 x 48
    with open_video(film(frames, shape=2)) as video:
        row = video.frames([0.0], 24)[0, 0, 12]
    assert int((row > 128).sum()) == 8


def test_brightness_tells_the_number() -> None:
    assert [number_of(frame.transpose(2, 0, 1)) for frame in numbered(51)] == list(range(51))
    assert STEP * 50 < 256
