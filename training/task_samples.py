"""What a multi-task network makes of pictures, to be looked at: each task's map beside the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.multi_task import MultiTaskEncoder
from embed.multi_task_nets import DenseKind
from training.annotated import UNKNOWN, Annotated
from training.sheets import draw_rows

__all__ = ["draw_task_samples", "task_rows"]

SHOWN = 6  # pictures
PALETTE = np.array(
    [
        *((0, 0, 0), (230, 75, 53), (77, 187, 213), (0, 160, 135), (240, 200, 60), (145, 90, 180)),
        *((243, 155, 127), (60, 84, 136), (126, 97, 72), (176, 156, 133)),
    ],
    np.uint8,
)  # of classes; further ones begin anew
GREY = (128, 128, 128)  # of pixels that are not known


def draw_task_samples(encoder: MultiTaskEncoder, data: Annotated, out: Path) -> None:
    """Draw the first pictures of some data with the true and the predicted map of each dense task.

    Raises:
        ArtifactError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    titles = ["picture"] + [what for task in encoder.kinds for what in (task, "as seen")]
    draw_rows(
        task_rows(encoder, data), titles, out, "held-out pictures: maps as they are, and as the network sees them"
    )


def task_rows(encoder: MultiTaskEncoder, data: Annotated) -> list[list[NDArray[np.uint8]]]:
    """Of each of the first pictures a row (3, s, s): it, and of each dense task the true map and the predicted one."""
    pixels = np.array(data.pixels[:SHOWN])
    seen, columns = encoder.maps(pixels), [pixels]
    for task, kind in encoder.kinds.items():
        columns += [_coloured(kind, data.dense[task][:SHOWN]), _coloured(kind, seen[task])]
    return [list(row) for row in zip(*columns, strict=True)]


def _coloured(kind: DenseKind, maps: NDArray[Any]) -> NDArray[np.uint8]:
    """Classes in colours, all else in greys, (n, s, s) -> (n, 3, s, s)."""
    if kind == "segmentation":
        colours = np.where((maps == UNKNOWN)[..., None], np.array(GREY, np.uint8), PALETTE[maps % len(PALETTE)])
        return colours.transpose(0, 3, 1, 2).astype(np.uint8)
    grey = (np.clip(maps.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[:, None], 3, 1)
