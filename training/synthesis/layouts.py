"""Layouts: what is to be made, and where on the picture each phrase of its prompt is to be."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from training.synthesis.blocks import Box
from udr.config import StrictConfig, load_config
from udr.errors import ConfigError

__all__ = ["Layouts", "Scene", "Share", "box_cells", "read_layouts"]

Share = tuple[float, float, float, float]  # x0, y0, x1, y1 as shares of the picture's sides


class Scene(StrictConfig):
    """Pictures of one prompt with its things in given boxes."""

    prompt: str = Field(min_length=1)  # holds each phrase of `boxes`
    boxes: dict[str, Share] = Field(min_length=1)  # of phrases, x0, y0, x1, y1 as shares of the sides
    label: str | None = None  # of the pictures; none: the first phrase
    count: int = Field(default=8, ge=1, le=100_000)  # pictures that are wanted
    split: str = "train"  # of the table

    @field_validator("boxes")
    @classmethod
    def _boxes_lie_on_the_picture(cls, boxes: dict[str, Share]) -> dict[str, Share]:
        for phrase, (x0, y0, x1, y1) in boxes.items():
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError(f"{phrase}: expected x0, y0, x1, y1 from 0 to 1, the smaller first")
        return boxes

    @property
    def title(self) -> str:
        """The label of its pictures."""
        return self.label if self.label is not None else next(iter(self.boxes))


class Layouts(StrictConfig):
    """What `udr synthesize` is to make."""

    scenes: tuple[Scene, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _labels_are_words(self) -> Layouts:
        if any(not scene.title.strip() for scene in self.scenes):
            raise ValueError("scenes: a label without letters")
        return self


def read_layouts(path: Path) -> Layouts:
    """Read a layout file, YAML or JSON.

    Raises:
        ConfigError: it cannot be read, or is no layout (file, key and reason).
    """
    return load_config(Layouts, path)


def box_cells(share: Share, side: int) -> Box:
    """The box in cells of a grid: whole cells, those that it covers by half and more; one at least.

    Raises:
        ConfigError: no box.
    """
    x0, y0, x1, y1 = share
    found = []
    for low, high in ((x0, x1), (y0, y1)):
        if not 0 <= low < high <= 1:
            raise ConfigError(f"box {x0},{y0},{x1},{y1}: expected shares from 0 to 1, the smaller first")
        first = min(math.floor(low * side + 0.5), side - 1)
        found.append((first, max(first + 1, math.floor(high * side + 0.5))))
    (left, right), (top, bottom) = found
    return left, top, right, bottom
