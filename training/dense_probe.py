"""What each cell of a backbone's grid knows of its own place: which of four pictures on a canvas lies there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from embed.backbones import Backbone
from training.probes import linear_accuracy
from udr.errors import ConfigError, DataError
from udr.types import FloatArray, Progress

__all__ = ["canvases", "cells_of", "dense_accuracy", "pixels_of_cells"]

MOST = 4000  # canvases at most, to learn from or to ask
AT_ONCE = 256  # canvases in one forward pass


def canvases(
    pixels: NDArray[np.uint8], classes: NDArray[np.int64], most: int = MOST, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Canvases of two by two pictures at half their size, drawn at random, each picture once at most.

    So the truth of every place is known exactly, and no place says what lies in it.

    Shape: pixels (n, 3, s, s), classes (n,); the results are (m, 3, s, s) and (m, 2, 2), m at most n / 4.

    Raises:
        ConfigError: s is odd.
        DataError: fewer than four pictures.
    """
    size = pixels.shape[2]
    if size % 2:
        raise ConfigError(f"--probes dense: pictures of {size} pixels have no half")
    if len(pixels) < 4:
        raise DataError(f"a canvas has four pictures, and there are {len(pixels)}")
    chosen = np.random.default_rng(seed).permutation(len(pixels))[: min(most, len(pixels) // 4) * 4].reshape(-1, 2, 2)
    found = np.empty((len(chosen), *pixels.shape[1:]), np.uint8)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for start in range(0, len(chosen), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            tiles = torch.from_numpy(pixels[chosen[part, row, column]]).float()
            halves = F.avg_pool2d(tiles, 2).round_().to(torch.uint8).numpy()
            top, left = row * size // 2, column * size // 2
            found[part, :, top : top + size // 2, left : left + size // 2] = halves
    return found, classes[chosen]


def cells_of(backbone: Backbone, pixels: NDArray[np.uint8]) -> FloatArray:
    """Features of each cell of pictures (n, 3, s, s), float32 (n, h, w, d)."""
    device, was_training, found = backbone.device, backbone.training, []
    backbone.eval()
    with torch.inference_mode():
        for start in range(0, len(pixels), AT_ONCE):
            part = torch.from_numpy(pixels[start : start + AT_ONCE]).to(device).float() / 255
            found.append(backbone(part).float().permute(0, 2, 3, 1).cpu().numpy())
    backbone.train(was_training)
    return np.concatenate(found)


def pixels_of_cells(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The pixels that lie in each cell of a grid of `side` by `side`, (n, side, side, 3 · (s / side)²)."""
    n, _, size, _ = pixels.shape
    inside = size // side
    cut = pixels[:, :, : inside * side, : inside * side].reshape(n, 3, side, inside, side, inside)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, side, side, -1)


def dense_accuracy(
    cells: NDArray[np.float32] | NDArray[np.uint8],
    truth: NDArray[np.int64],
    asked: NDArray[np.float32] | NDArray[np.uint8],
    answers: NDArray[np.int64],
    progress: Progress | None = None,
) -> float:
    """Share of cells of asked canvases whose picture's class one linear classifier for all places tells.

    Cells that lie in two pictures, of grids with an odd side, are left out.

    Shape: cells (m, h, w, d), truth (m, 2, 2), asked (n, h, w, d), answers (n, 2, 2).

    Raises:
        ConfigError: a grid of one cell.
    """
    (bank, classes, together), (queries, right, _) = _flat(cells, truth), _flat(asked, answers)
    return linear_accuracy(bank, classes, queries, right, together=together, progress=progress)


def _flat(
    cells: NDArray[np.float32] | NDArray[np.uint8], truth: NDArray[np.int64]
) -> tuple[NDArray[np.float32] | NDArray[np.uint8], NDArray[np.int64], int]:
    """Cells that lie in one picture (n · c, d), their classes, and c."""
    rows, columns = (_quarters(side) for side in cells.shape[1:3])
    if not (len(rows) and len(columns)):
        raise ConfigError("--probes dense: the backbone has one cell, which is the whole picture")
    kept = cells[:, rows[:, 0]][:, :, columns[:, 0]]
    labels = truth[:, rows[:, 1]][:, :, columns[:, 1]]
    return kept.reshape(-1, cells.shape[3]), labels.reshape(-1), len(rows) * len(columns)


def _quarters(side: int) -> NDArray[np.int64]:
    """Cells of an axis that lie in one half, each with its half, (c, 2)."""
    return np.array([(i, 2 * i // side) for i in range(side) if side % 2 == 0 or i != side // 2], np.int64).reshape(
        -1, 2
    )
