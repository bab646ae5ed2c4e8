"""Small labelled things for tests: pictures of coloured patches that are seen together, with boxes, and their words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from training.labelled import Labelled, write_labelled

PATCHES = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}
TOGETHER = (("red", "green"), ("blue",), ("black", "blue", "red"))
SIDE, PLACE = 24, 8  # pixels of a picture and of a patch


def labelled(count: int, seed: int = 0, split: str = "train") -> list[Labelled]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        labels = TOGETHER[int(rng.integers(len(TOGETHER)))]
        pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
        boxes = []
        for label, place in zip(labels, rng.permutation(9), strict=False):
            y, x = (PLACE * int(corner) for corner in divmod(int(place), 3))
            pixels[y : y + PLACE, x : x + PLACE] = np.clip(np.array(PATCHES[label]) + rng.integers(-9, 10, 3), 0, 255)
            boxes.append((x / SIDE, y / SIDE, (x + PLACE) / SIDE, (y + PLACE) / SIDE))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        words = " ".join(f"a {label} patch" for label in rng.permutation(list(labels)))
        made.append(Labelled(f"{split}/{i}", file.getvalue(), words, labels, tuple(boxes), split))
    return made


def write_patches(path: Path, train: int = 160, test: int = 40) -> Path:
    write_labelled(path, [*labelled(train), *labelled(test, 1, "test")])
    return path
