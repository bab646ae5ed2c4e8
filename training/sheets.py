"""Sheets of pictures: queries beside their nearest, and rows of pictures under titles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from embed.media import open_picture, pixels_of
from training.neighbours import Answer, Box
from udr.artifacts import replacing
from udr.errors import ConfigError, MissingDependencyError

__all__ = ["check_png", "draw_answers", "draw_captioned", "draw_rows"]

SIDE, GAP, FRAME = 112, 12, 4  # pixels of a picture's side, between two, and about one
LINE, TALL = 16, 14  # of a line of text and its letters
INK, PALE, GROUND = "#1b1f24", "#59636e", "#ffffff"
RIGHT, WRONG, NEUTRAL = "#00795a", "#b8450a", "#8c959f"  # told apart in every kind of colour vision, and by their signs
SIGNS = {True: "✓", False: "✗", None: ""}
FRAMES = {True: RIGHT, False: WRONG, None: NEUTRAL}
STEP = SIDE + 2 * FRAME + GAP


def check_png(path: Path, option: str = "--out") -> None:
    """Raise ConfigError where a picture would not be written as PNG."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{option} {path}: expected FILE.png")


def draw_answers(answers: Sequence[Answer], out: Path, title: str) -> None:
    """Draw a row for each query: itself, and its nearest pictures with their labels and cosines.

    Raises:
        ArtifactError: the file cannot be written.
    """
    count = max(len(answer.neighbours) for answer in answers)
    judged = any(n.right is not None for answer in answers for n in answer.neighbours)
    legend = f"{SIGNS[True]} the query's label   {SIGNS[False]} another   " if judged else ""
    legend += "number: cosine"
    if any(answer.box for answer in answers):
        legend += "   box: the part that was asked for, and what is most like it"
    top, tall = GAP + 3 * LINE + GAP, SIDE + 2 * FRAME + 2 * LINE + GAP
    wide = max(GAP + (count + 1) * STEP + GAP, GAP + _width(title) + GAP, GAP + _width(legend) + GAP)
    sheet = Image.new("RGB", (wide, top + len(answers) * tall), GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, GAP), title, INK)
    _write(draw, (GAP, GAP + LINE), legend, PALE)
    for column in range(count + 1):
        name = f"{column}" if column else "query"
        _write(draw, (_left(column), GAP + 2 * LINE + GAP // 2), name, PALE)
    draw.line((STEP + GAP, top, STEP + GAP, sheet.height - GAP), fill="#d0d7de")
    for i, answer in enumerate(answers):
        y = top + i * tall
        right = sum(n.right is True for n in answer.neighbours)
        told = f"{right} of {len(answer.neighbours)}" if judged else ""
        _picture(sheet, draw, (_left(0), y), answer.row[1], answer.row[0], INK, answer.box)
        _captions(draw, (_left(0), y), answer.row[2] or answer.row[0], told, INK)
        for j, near in enumerate(answer.neighbours, 1):
            colour = FRAMES[near.right]
            _picture(sheet, draw, (_left(j), y), near.row[1], near.row[0], colour, near.box)
            label = " ".join(filter(None, (SIGNS[near.right], near.row[2] or near.row[0])))
            _captions(draw, (_left(j), y), label, f"{near.similarity:.3f}", colour if near.right is not None else INK)
    _save(sheet, out)


def draw_rows(pictures: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], out: Path, title: str) -> None:
    """Draw pictures (3, s, s) in rows, the columns under their titles.

    Raises:
        ArtifactError: the file cannot be written.
    """
    top, step = GAP + 2 * LINE + GAP, SIDE + GAP
    wide = max(GAP + len(titles) * step, 2 * GAP + _width(title))
    sheet = Image.new("RGB", (wide, top + len(pictures) * step), GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, GAP), title, INK)
    for j, name in enumerate(titles):
        _write(draw, (GAP + j * step, GAP + LINE + GAP // 2), _fitted(name, SIDE), PALE)
    for i, row in enumerate(pictures):
        for j, pixels in enumerate(row):
            x, y = GAP + j * step, top + i * step
            draw.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=NEUTRAL)
            sheet.paste(_scaled(Image.fromarray(pixels.transpose(1, 2, 0))), (x, y))
    _save(sheet, out)


def draw_captioned(rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], out: Path, title: str) -> None:
    """Draw pictures (3, s, s) in rows of any length, each over its own line.

    Raises:
        ArtifactError: the file cannot be written.
    """
    top, step, tall = GAP + LINE + GAP, SIDE + GAP, SIDE + LINE + GAP
    wide = max(GAP + max(map(len, rows)) * step, 2 * GAP + _width(title))
    sheet = Image.new("RGB", (wide, top + len(rows) * tall), GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, GAP), title, INK)
    for i, row in enumerate(rows):
        for j, (pixels, caption) in enumerate(row):
            x, y = GAP + j * step, top + i * tall
            draw.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=NEUTRAL)
            sheet.paste(_scaled(Image.fromarray(pixels.transpose(1, 2, 0))), (x, y))
            _write(draw, (x, y + SIDE + 1), _fitted(caption, SIDE), INK if j else PALE)
    _save(sheet, out)


def _left(column: int) -> int:
    """Where a column begins; those of neighbours stand apart from the query's."""
    return GAP + column * STEP + (GAP if column else 0)


def _picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    source: bytes | Path,
    name: str,
    colour: str,
    box: Box | None,
) -> None:
    """A picture in its frame, with a box in it."""
    x, y = at
    draw.rectangle((x, y, x + SIDE + 2 * FRAME - 1, y + SIDE + 2 * FRAME - 1), fill=colour)
    sheet.paste(_scaled(open_picture(source, name)), (x + FRAME, y + FRAME))
    if box is not None:
        edges = [value * SIDE for value in box]
        corners = (x + FRAME + edges[0], y + FRAME + edges[1], x + FRAME + edges[2] - 1, y + FRAME + edges[3] - 1)
        draw.rectangle(corners, outline="#000000", width=4)  # seen on every ground
        draw.rectangle([c + d for c, d in zip(corners, (1, 1, -1, -1), strict=True)], outline="#ffdf5d", width=2)


def _scaled(picture: Image.Image) -> Image.Image:
    """The middle square."""
    return Image.fromarray(pixels_of(picture, SIDE).transpose(1, 2, 0))


def _captions(draw: ImageDraw.ImageDraw, at: tuple[int, int], first: str, second: str, colour: str) -> None:
    x, y = at[0], at[1] + SIDE + 2 * FRAME + 1
    _write(draw, (x, y), _fitted(first, SIDE + 2 * FRAME), colour)
    _write(draw, (x, y + LINE), second, PALE)


def _fitted(text: str, width: int) -> str:
    """A text that is cut where it is too wide."""
    text = " ".join(text.split())
    if _width(text) <= width:
        return text
    while text and _width(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str) -> None:
    draw.text(at, text, fill=colour, font=_font())


def _width(text: str) -> int:
    return int(_font().getlength(text)) + 1


@cache
def _font() -> Any:
    """DejaVu, which matplotlib brings: it has signs, and more letters than Pillow's own."""
    try:
        from matplotlib import font_manager
    except ImportError:
        raise MissingDependencyError("matplotlib", "pretrain") from None
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), TALL)


def _save(sheet: Image.Image, out: Path) -> None:
    with replacing(out) as temporary:
        sheet.save(temporary, "PNG")
