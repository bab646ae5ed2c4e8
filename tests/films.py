"""Small videos made on the spot: a frame's brightness says its number, so that what was read can be told."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 5  # of brightness from a frame to the next


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(t, height, width, 3), uint8: frame i is grey of i · STEP, with a white upper left quarter."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (np.arange(count) * STEP)[:, None, None, None]
    frames[:, : height // 4, : width // 4] = 255
    return frames


def number_of(frame: np.ndarray) -> int:
    """Of a frame (3, side, side) that was read."""
    return round(float(frame[:, frame.shape[1] // 2 :].mean()) / STEP)


def film(
    frames: np.ndarray,
    kind: str = "mp4",
    codec: str = "libx264",
    rate: int = 25,
    stamps: Sequence[float] | None = None,
    turn: int = 0,
    keys: int = 12,
    options: dict[str, str] | None = None,
    shape: int = 1,
) -> bytes:
    """A video file; `stamps` are seconds of frames of variable rate, `turn` degrees by which it is to be shown.

    Pixels are `shape` times as wide as high.
    """
    folder = tempfile.TemporaryDirectory()  # FFmpeg reads what it has written again to put an index first
    path = Path(folder.name) / "film"
    with folder, av.open(str(path), "w", format=kind, container_options=options or {}) as container:
        more = {"crf": "8", "x264-params": "scenecut=0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=more)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = keys
        stream.codec_context.max_b_frames = 0
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        if shape != 1:
            stream.codec_context.sample_aspect_ratio = Fraction(shape, 1)
        if turn:
            stream.set_display_rotation(turn)
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        container.start_encoding()  # without frames too
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = round(stamps[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.close()
        return path.read_bytes()


def sound(kind: str = "mp4", codec: str = "aac", seconds: float = 0.5) -> bytes:
    """A file of a tone and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        count = int(16_000 * seconds)
        wave = (0.3 * np.sin(np.arange(count) / 5)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def moving(seed: int, count: int = 24, side: int = 40, right: bool = True) -> np.ndarray:
    """A bright square that goes to the right, or down, before noise of its own: (t, side, side, 3)."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 120, (1, side, side, 3)), count, 0)
    aside, begin = rng.integers(0, side - 8), rng.integers(0, side)
    for i in range(count):
        at = (begin + i) % (side - 8)
        y, x = (aside, at) if right else (at, aside)
        frames[i, y : y + 8, x : x + 8] = 255
    return frames.astype(np.uint8)


def write_films(folder: Path, count: int, kind: str = "mp4", frames: int = 24) -> Path:
    """Films of two classes, `right` and `down`, in a folder each."""
    for i in range(count):
        name = ("right", "down")[i % 2]
        path = folder / name / f"{i:03}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film(moving(i, frames, right=name == "right")))
    return folder
