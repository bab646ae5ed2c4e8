"""Small captioned things whose concept is a shape in its colour, a word and a tone, for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from training.captioned import Captioned, Sound, write_captioned

SHAPES = {"disc": 300.0, "square": 900.0, "stripes": 2500.0}  # Hz of what is said of each
COLOURS = {"disc": (200, 30, 30), "square": (30, 160, 30), "stripes": (30, 30, 200)}
WORDS = {"disc": "a round disc", "square": "one square", "stripes": "some stripes"}


def drawing(shape: str, rng: np.random.Generator) -> bytes:
    ys, xs = np.mgrid[:16, :16]
    y, x, r = rng.integers(5, 11), rng.integers(5, 11), rng.integers(3, 5)
    inside = {
        "disc": (ys - y) ** 2 + (xs - x) ** 2 <= r * r,
        "square": (abs(ys - y) <= r) & (abs(xs - x) <= r),
        "stripes": (ys + int(y)) % 4 < 2,
    }[shape]
    pixels = np.where(inside[..., None], np.array(COLOURS[shape]) + rng.integers(-30, 30, 3), 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tone(hertz: float, rng: np.random.Generator, rate: int = 8000) -> bytes:
    times = np.arange(int(rate * rng.uniform(0.2, 0.4))) / rate
    samples = 0.3 * np.sin(2 * np.pi * hertz * rng.uniform(0.95, 1.05) * times) + rng.normal(0, 0.02, len(times))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def things(count: int, seed: int = 0, split: str = "train") -> list[Captioned]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        shape = list(SHAPES)[i % 3]
        sounds = (Sound("en", "human", tone(SHAPES[shape], rng)),)
        captions = (("en", WORDS[shape]), ("fr", f"un {shape}"))
        made.append(Captioned(f"{split}/{i}", drawing(shape, rng), captions, sounds, shape, split))
    return made


def write_things(path: Path, train: int = 48, test: int = 12) -> Path:
    write_captioned(path, [*things(train), *things(test, 1, "test")])
    return path
