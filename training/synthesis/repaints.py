"""One region painted anew, to be looked at, and how much of the rest stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.sheets import draw_rows
from training.synthesis.layouts import Share, box_cells
from training.synthesis.model import TextToImage
from training.synthesis.synthesize import repaint
from udr.errors import ConfigError

__all__ = ["changes", "draw_repaints", "parse_shares"]

IN_ROW = 8


def parse_shares(text: str) -> Share:
    """A region such as `0,0.5,0.5,1`.

    Raises:
        ConfigError: it is none.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--region {text}: expected X0,Y0,X1,Y1 as shares of the sides") from None
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ConfigError(f"--region {text}: expected shares from 0 to 1, the smaller first")
    return x0, y0, x1, y1


def changes(first: NDArray[np.uint8], other: NDArray[np.uint8], region: Share) -> tuple[float, float]:
    """The mean change of pixels (3, s, s), of 1, inside a region and outside it (0 where nothing is outside)."""
    x0, y0, x1, y1 = box_cells(region, first.shape[1])
    inside = np.zeros(first.shape[1:], bool)
    inside[y0:y1, x0:x1] = True
    moved = np.abs(first.astype(float) - other.astype(float)).mean(0) / 255
    return float(moved[inside].mean()), float(moved[~inside].mean()) if not inside.all() else 0.0


def draw_repaints(
    model: TextToImage,
    prompt: str,
    region: Share,
    seed: int,
    tries: int,
    steps: int | None,
    guidance: float | None,
    out: Path,
) -> list[dict[str, Any]]:
    """Draw a picture and what it becomes with other noise under a region; tell how much changed.

    Raises:
        ConfigError: a region that is none.
        ArtifactError: the file cannot be written.
    """
    seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1)[0]) for i in range(tries)]
    pictures = repaint(model, prompt, model.noise(seed), region, seeds, steps, guidance)
    rows = []
    for own, picture in zip(seeds, pictures[1:], strict=True):
        inside, outside = changes(pictures[0], picture, region)
        rows.append({"seed": own, "inside": round(inside, 4), "outside": round(outside, 4)})
    sheet = [list(pictures[start : start + IN_ROW]) for start in range(0, len(pictures), IN_ROW)]
    words = ",".join(f"{value:g}" for value in region)
    draw_rows(
        sheet, ["first", *(str(i) for i in range(1, min(IN_ROW, len(pictures))))], out, f"{prompt}; anew: {words}"
    )
    return rows
