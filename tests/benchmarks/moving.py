"""Rendered videos whose class is how something moves, and nothing else: written as MP4 files by PyAV.

Four letters move alike before a coloured ground, by days and frosty nights. Letters, ground, days, size, tilt, speed,
phase and direction are drawn for each video from the same distributions whatever the class, so that a single frame
hardly tells it.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, RATE, SECONDS = 48, 16, 8.0
Pose = tuple[float | None, float | None, float, float]  # x and y from -1 to 1 if it moves so, angle in turns, size


def _slide(across: bool) -> Callable[[float, int], Pose]:
    def pose(phase: float, sign: int) -> Pose:
        where = 4 * abs((sign * phase) % 1 - 0.5) - 1  # to and fro, at one speed
        return (where, None, 0.0, 1.0) if across else (None, where, 0.0, 1.0)

    return pose


def _circle(phase: float, sign: int) -> Pose:
    angle = 2 * math.pi * sign * phase
    return math.cos(angle), math.sin(angle), 0.0, 1.0


def _spin(phase: float, sign: int) -> Pose:
    return None, None, sign * phase, 1.0


def _swing(phase: float, sign: int) -> Pose:
    return None, None, 0.15 * sign * math.sin(2 * math.pi * phase), 1.0


def _breathe(phase: float, sign: int) -> Pose:
    return None, None, 0.0, 1 + 0.3 * sign * math.sin(2 * math.pi * phase)


def _bounce(phase: float, sign: int) -> Pose:
    across = 4 * abs((sign * phase / 3) % 1 - 0.5) - 1
    high = 1 - 2 * (2 * (phase % 1) - 1) ** 2  # a throw, again and again
    return across, -high, 0.0, 1.0


def _jump(phase: float, sign: int) -> Pose:
    """From corner to corner, at rest between."""
    corner = int(sign * phase * 4) % 4
    return (-1.0, 1.0, 1.0, -1.0)[corner], (-1.0, -1.0, 1.0, 1.0)[corner], 0.0, 1.0


MOTIONS: dict[str, Callable[[float, int], Pose]] = {
    "across": _slide(True),
    "down": _slide(False),
    "circle": _circle,
    "spin": _spin,
    "swing": _swing,
    "breathe": _breathe,
    "bounce": _bounce,
    "jump": _jump,
}


def ground(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3), 0 to 255: greener above, redder to the right, of one brightness; with blots.

    So a part of it shows by its hue where it lies, and by its brightness what time of the day it is.
    """
    down, across = np.mgrid[:SIDE, :SIDE] / (SIDE - 1.0)
    red, green = across ** rng.uniform(0.8, 1.25), (1 - down) ** rng.uniform(0.8, 1.25)
    pixels = np.stack([0.05 + 0.5 * red, 0.05 + 0.5 * green, 0.05 + 0.475 * (2 - red - green)], 2)
    picture = Image.fromarray((255 * pixels).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(5):
        x, y, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(1, 3)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return np.asarray(picture, np.float64)


def letter(rng: np.random.Generator) -> Image.Image:
    """A capital or a digit, black on white or white on black, on nothing."""
    tile = Image.new("RGBA", (48, 48))
    fill = int(rng.choice((0, 255)))
    text, edge = str(rng.choice(list(string.ascii_uppercase + string.digits))), (255 - fill,) * 3 + (255,)
    font = ImageFont.load_default(48)
    ImageDraw.Draw(tile).text((24, 24), text, (fill,) * 3 + (255,), font, "mm", stroke_width=3, stroke_fill=edge)
    return tile


def frames_of(motion: str, rng: np.random.Generator, seconds: float = SECONDS) -> np.ndarray:
    """(t, SIDE, SIDE, 3), uint8: four letters that move alike."""
    behind, count = ground(rng), round(seconds * RATE)
    tiles, size, reach = [letter(rng) for _ in range(4)], rng.uniform(19, 23), rng.uniform(6, 8)
    places = np.array([(x, y) for x in (0.27, 0.73) for y in (0.27, 0.73)]) * SIDE + rng.uniform(-3, 3, (4, 2))
    speed, phase, sign = rng.uniform(0.5, 0.8), rng.uniform(0, 12), int(rng.choice((-1, 1)))
    period, begun = math.exp(rng.uniform(math.log(24), math.log(256))), rng.uniform(0, 1)
    frost = np.kron(rng.choice((-1, 1), (SIDE // 3, SIDE // 3)), np.ones((3, 3)))[:, :, None]
    # what a motion leaves as it is has any value that another one gives it, so that one frame tells little
    aside, tilts, grown = rng.uniform(-1, 1, 2), rng.uniform(0, 1, 4), 1 + 0.3 * math.sin(rng.uniform(0, 2 * math.pi))
    found = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        px, py, turn, scale = MOTIONS[motion](phase + speed * i / RATE, sign)
        px, py = aside[0] if px is None else px, aside[1] if py is None else py
        side = max(4, round(size * (scale if motion == "breathe" else grown)))
        light = 0.5 + 0.5 * math.sin(2 * math.pi * (i / period + begun))
        frame = Image.fromarray((behind + 25 * (1 - light) * frost).clip(0, 255).astype(np.uint8))
        for tile, place, tilt in zip(tiles, places, tilts, strict=True):
            drawn = tile.resize((side, side), Image.Resampling.BILINEAR)
            drawn = drawn.rotate(360 * (turn + tilt), Image.Resampling.BILINEAR)
            frame.paste(
                drawn, (round(place[0] + reach * px - side / 2), round(place[1] + reach * py - side / 2)), drawn
            )
        found[i] = np.asarray(frame) * (0.4 + 0.6 * light)
    return found


def write_mp4(path: Path, frames: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast", "g": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def render(folder: Path, count: int, seed: int) -> Path:
    """`count` videos, as many of each motion, in a folder a class; what stands there already is kept."""
    names = sorted(MOTIONS)
    for number in range(count):
        motion = names[number % len(names)]
        path = folder / motion / f"{number:05}.mp4"
        if not path.is_file():
            write_mp4(path, frames_of(motion, np.random.default_rng([seed, number])))
    return folder
