"""Canvases with captions and boxes, made on the spot from captioned pictures of single things on white ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.media import open_picture, pixels_of
from training.captioned import Captioned
from training.synthesis.vocabulary import caption_of, check_names
from udr.errors import ConfigError, DataError

__all__ = ["Canvas", "Canvases", "Cut"]

TRIES = 50  # places drawn for the things of a canvas before they are drawn anew with others
Cut = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True)
class Canvas:
    """A picture that was made.

    Args:
        pixels: (3, s, s), uint8.
        names: of the things on it, as its caption tells them.
        boxes: of each thing.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    boxes: tuple[Cut, ...]

    @property
    def caption(self) -> str:
        return caption_of(self.names)


@dataclass(frozen=True)
class Canvases:
    """Canvases of one to `most` things side by side, none over another: what the loop draws its batches from.

    Args:
        things: pictures on white ground, with a name as first caption.
        size: pixels of a canvas's side.
        sides: smallest and largest pixels of a thing's side.
        most: things on a canvas.
        count: canvases of an epoch; each is drawn anew.
    """

    things: Sequence[Captioned]
    size: int
    sides: tuple[int, int]
    most: int
    count: int

    def __post_init__(self) -> None:
        if not self.things:
            raise DataError("no things to make canvases of")
        if self.sides[1] > self.size // 2:
            raise ConfigError(f"diffusion.sides: {self.sides[1]} pixels; two things fit beside each other up to half")
        check_names(self.names)

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the loop hands on: numbers (n,); the canvases are drawn in the step itself, by its own seed."""
        return rows

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple((thing.texts() or [""])[0].strip().rstrip(".").lower() for thing in self.things)

    @cached_property
    def _scaled(self) -> list[dict[int, NDArray[np.uint8]]]:
        """Each thing at each side, (3, side, side)."""
        found = []
        for thing in self.things:
            picture = open_picture(thing.image, thing.id)
            found.append({side: pixels_of(picture, side) for side in range(self.sides[0], self.sides[1] + 1)})
        return found

    def draw(self, random: Random) -> Canvas:
        """One canvas; two things on it are never of one name."""
        while True:
            chosen = random.sample(range(len(self.things)), min(random.randint(1, self.most), len(self.things)))
            sides = [random.randint(*self.sides) for _ in chosen]
            boxes = _apart(sides, self.size, random)
            if boxes and len({self.names[i] for i in chosen}) == len(chosen):
                break
        pixels = np.full((3, self.size, self.size), 255, np.uint8)
        for i, (x0, y0, x1, y1) in zip(chosen, boxes, strict=True):
            pixels[:, y0:y1, x0:x1] = self._scaled[i][x1 - x0]
        return Canvas(pixels, tuple(self.names[i] for i in chosen), tuple(boxes))

    def drawn(self, n: int) -> list[Canvas]:
        """Some canvases, by torch's own state."""
        random = Random(int(torch.randint(2**62, (1,))))
        return [self.draw(random) for _ in range(n)]

    @staticmethod
    def pixels(canvases: Sequence[Canvas]) -> Tensor:
        """Pixels from 0 to 1, (n, 3, s, s)."""
        return torch.from_numpy(np.stack([c.pixels for c in canvases])).float() / 255


def _apart(sides: Sequence[int], size: int, random: Random) -> list[Cut]:
    """Boxes of squares, none over another; empty where none were found."""
    for _ in range(TRIES):
        boxes: list[Cut] = []
        for side in sides:
            x, y = random.randint(0, size - side), random.randint(0, size - side)
            if all(x >= b[2] or x + side <= b[0] or y >= b[3] or y + side <= b[1] for b in boxes):
                boxes.append((x, y, x + side, y + side))
        if len(boxes) == len(sides):
            return boxes
    return []
