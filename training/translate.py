"""Pictures in another style, as a sheet and as files: `udr translate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embed.media import open_picture, pixels_of
from embed.translation import Translator
from training.pictures import Row
from training.sheets import draw_rows
from udr.artifacts import replacing
from udr.errors import ConfigError, DataError
from udr.types import FloatArray

__all__ = ["attributes_for", "draw_translations", "read_rows", "translate_rows", "write_pictures"]

Pixels = NDArray[np.uint8]  # (n, 3, s, s)


def read_rows(rows: Sequence[Row], size: int) -> tuple[list[Row], Pixels, list[str]]:
    """Rows that are pictures, their pixels, and what is wrong with the others, a line each.

    Raises:
        DataError: none of them is a picture.
    """
    kept, pixels, wrong = list[Row](), list[Pixels](), list[str]()
    for row in rows:
        try:
            pixels.append(pixels_of(open_picture(row[1], row[0]), size))
        except DataError as error:
            wrong.append(str(error))
            continue
        kept.append(row)
    if not kept:
        raise DataError(f"none of {len(rows)} pictures can be read; the first: {wrong[0]}")
    return kept, np.stack(pixels), wrong


def attributes_for(
    translator: Translator, pixels: Pixels, style: int, draws: int, like: Pixels | None, seed: int
) -> list[FloatArray]:
    """Attributes (n, a) for each translation of pictures: those of `like`, a picture each, or as many drawn ones.

    The first is the picture's own, as the other style's encoder reads it, which keeps its colours.

    Raises:
        ConfigError: neither draws nor pictures whose attributes are taken: `draws` below 0.
    """
    if draws < 0:
        raise ConfigError(f"--draws {draws}: expected 0 or more")
    found = [translator.attributes_in(pixels, style)]
    if like is not None:
        return found + [np.repeat(one[None], len(pixels), 0) for one in translator.attributes_in(like, style)]
    rng = np.random.default_rng(seed)
    return found + [rng.standard_normal(found[0].shape, np.float32) for _ in range(draws)]


def translate_rows(
    translator: Translator, pixels: Pixels, style: int, attributes: Sequence[FloatArray]
) -> list[Pixels]:
    """Pictures in a style, once with each of the attributes."""
    return [translator.translate(pixels, style, own) for own in attributes]


def draw_translations(
    translator: Translator, pixels: Sequence[Pixels], draws: int, seed: int, out: Path, title: str
) -> None:
    """Draw pictures of both styles, each in a row with its translations into the other: its own attribute, drawn ones.

    Raises:
        ArtifactError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    rows: list[list[Pixels]] = []
    for style, own in enumerate(pixels):
        wanted = attributes_for(translator, own, 1 - style, draws, None, seed)
        columns = [own, *translate_rows(translator, own, 1 - style, wanted)]
        rows += [list(row) for row in zip(*columns, strict=True)]
    draw_rows(rows, ["picture", "own attribute", *(f"drawn {i + 1}" for i in range(draws))], out, title)


def write_pictures(rows: Sequence[Row], made: Sequence[Pixels], folder: Path) -> int:
    """Write every translation as FOLDER/LABEL/NAME-NUMBER.png; give how many.

    Raises:
        ArtifactError: a file cannot be written.
    """
    count = 0
    used: set[Path] = set()
    for i, (name, _, label) in enumerate(rows):
        stem = folder / _plain(label or "") / _plain(name)
        if stem in used:  # names that differ may look alike as files
            stem = stem.with_name(f"{stem.name}-{i}")
        used.add(stem)
        for number, pictures in enumerate(made):
            path = stem.with_name(f"{stem.name}-{number}.png")
            with replacing(path) as temporary:
                Image.fromarray(pictures[i].transpose(1, 2, 0)).save(temporary, "PNG")
            count += 1
    return count


def _plain(name: str) -> str:
    """A name as one that a file can have; none that leads elsewhere."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".")
