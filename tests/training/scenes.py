"""Small pictures whose class is a shape, for tests of pre-training."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from training.pictures import Pictures


def scene(shape: str, rng: np.random.Generator) -> np.ndarray:
    """A disc, a square or stripes of any colour, place and size on any ground: what colour and place do not tell."""
    ys, xs = np.mgrid[:16, :16]
    y, x, r = rng.integers(5, 11), rng.integers(5, 11), rng.integers(3, 5)
    inside = {
        "disc": (ys - y) ** 2 + (xs - x) ** 2 <= r * r,
        "square": (abs(ys - y) <= r) & (abs(xs - x) <= r),
        "stripes": (ys + int(y)) % 4 < 2,
    }[shape]
    ground, colour = rng.integers(0, 256, (2, 3))
    picture = np.where(inside[..., None], colour, ground) + rng.normal(0, 8, (16, 16, 3))
    return picture.clip(0, 255).astype(np.uint8)


def scenes(count: int, seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    labels = tuple(("disc", "square", "stripes")[i % 3] for i in range(count))
    pixels = np.stack([scene(label, rng).transpose(2, 0, 1) for label in labels])
    return Pictures(pixels, tuple(map(str, range(count))), labels)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
