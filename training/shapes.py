"""Coloured shapes as captioned pictures, drawn on the spot: things whose every pixel is known."""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image, ImageDraw

from training.captioned import Captioned, write_captioned

__all__ = ["COLOURS", "SHAPES", "draw_shape", "shapes_table"]

SIDE, FINER = 64, 4  # pixels of a picture; drawn so many times larger, for smooth edges
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 60, 220),
    "yellow": (245, 205, 20),
    "purple": (150, 40, 170),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")


def draw_shape(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """One shape that fills a white picture of 64 pixels."""
    side = SIDE * FINER
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    low, high, third = 0, side - 1, side // 3
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=colour)
    elif shape == "triangle":
        draw.polygon([(side / 2, low), (high, high), (low, high)], fill=colour)
    elif shape == "ring":
        draw.ellipse((low, low, high, high), outline=colour, width=math.ceil(side * 0.24))
    else:
        draw.rectangle((third, low, high - third, high), fill=colour)
        draw.rectangle((low, third, high, high - third), fill=colour)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def shapes_table(out: Path) -> int:
    """Write the captioned table of every shape in every colour, its shape the label; give its rows."""
    rows = []
    for shape in SHAPES:
        for name, colour in COLOURS.items():
            file = io.BytesIO()
            draw_shape(shape, colour).save(file, "PNG")
            rows.append(Captioned(f"{name}-{shape}", file.getvalue(), (("en", f"{name} {shape}"),), label=shape))
    return write_captioned(out, rows)
