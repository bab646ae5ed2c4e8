"""Noise by its blocks: those that would rather become an object are moved to where it is to be.

A block is what one cell of a map stands for: 4 × 4 places of Stable Diffusion's latents, all channels. An edit moves
blocks and changes none, so what is made is still noise of N(0, 1), block by block.

Source: Mao et al. 2023, "Guided Image Synthesis via Initial Image Editing in Diffusion Model", arXiv 2305.03382.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udr.errors import ConfigError
from udr.types import FloatArray

__all__ = ["MOVES", "Box", "Move", "cells_of_boxes", "chosen_cells", "exchanged", "move_blocks", "sorted_in"]

Move = Literal["sorted", "exchange"]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in cells
Cells = NDArray[np.int64]  # numbers of cells, row by row


def cells_of_boxes(boxes: Sequence[Box], side: int) -> list[Cells]:
    """The cells of each box in scan order; where boxes lie over each other, those are the smaller one's.

    Of two of one size the cells are the first one's.

    Raises:
        ConfigError: a box that is empty, reaches out of the grid, or has no cell left.
    """
    owner = np.full((side, side), -1)
    sizes = []
    for x0, y0, x1, y1 in boxes:
        if not (0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side):
            raise ConfigError(f"box {x0},{y0},{x1},{y1}: empty, or out of {side} × {side} cells")
        sizes.append((x1 - x0) * (y1 - y0))
    for i in sorted(range(len(boxes)), key=lambda i: (-sizes[i], -i)):  # the smallest is written last
        x0, y0, x1, y1 = boxes[i]
        owner[y0:y1, x0:x1] = i
    found = [np.flatnonzero(owner == i) for i in range(len(boxes))]
    for box, cells in zip(boxes, found, strict=True):
        if not len(cells):
            raise ConfigError(f"box {','.join(map(str, box))}: other boxes lie all over it")
    return found


def chosen_cells(maps: Sequence[FloatArray], counts: Sequence[int]) -> list[Cells]:
    """The cells whose blocks each word gets, best first: (count,) each, and no cell twice.

    Maps are divided by their mean, and a cell is of the word with the highest one. A word takes its own cells from the
    highest down; where it has too few, those of the other words from the lowest up.

    Args:
        maps: of each word, (side, side).
        counts: cells that it is to have, at most all in sum.
    """
    scores = np.stack([m.astype(np.float64).ravel() / m.mean() for m in maps])  # (words, cells)
    of = scores.argmax(0)
    own = []
    for word, score in enumerate(scores):
        cells = np.flatnonzero(of == word)
        own.append(cells[np.argsort(-score[cells], kind="stable")])
    taken = np.zeros(scores.shape[1], bool)
    found = [cells[:count] for cells, count in zip(own, counts, strict=True)]
    for cells in found:
        taken[cells] = True
    for word, count in enumerate(counts):
        rest = np.flatnonzero((of != word) & ~taken)
        rest = rest[np.argsort(scores[of[rest], rest], kind="stable")][: count - len(found[word])]
        taken[rest] = True
        found[word] = np.concatenate([found[word], rest])
    return found


def sorted_in(maps: Sequence[FloatArray], boxes: Sequence[Box], random: np.random.Generator) -> Cells:
    """Fill each box in scan order from its best block down; the other blocks follow in scan order (`make_image`).

    Returns:
        Of each cell the one whose block it gets, (cells,); nothing of it is random.
    """
    areas = cells_of_boxes(boxes, maps[0].shape[0])
    chosen = chosen_cells(maps, [len(area) for area in areas])
    source = np.empty(maps[0].size, np.int64)
    inside, moved = np.concatenate(areas), np.concatenate(chosen)
    source[inside] = moved
    everything = np.arange(maps[0].size)
    source[np.setdiff1d(everything, inside)] = np.setdiff1d(everything, moved)
    return source


def exchanged(maps: Sequence[FloatArray], boxes: Sequence[Box], random: np.random.Generator) -> Cells:
    """Leave blocks that lie in their box already, and swap the others in, each for a random one that goes out.

    A block that is put out of a box, and into no other, takes a place that a block left behind.

    Returns:
        Of each cell the one whose block it gets, (cells,).
    """
    areas = cells_of_boxes(boxes, maps[0].shape[0])
    chosen = chosen_cells(maps, [len(area) for area in areas])
    source = np.arange(maps[0].size)
    for area, best in zip(areas, chosen, strict=True):
        coming, going = np.setdiff1d(best, area), np.setdiff1d(area, best)
        source[going] = random.permutation(coming)
    inside, moved = np.concatenate(areas), np.concatenate(chosen)
    left, homeless = np.setdiff1d(moved, inside), np.setdiff1d(inside, moved)
    source[left] = random.permutation(homeless)
    return source


MOVES: dict[Move, Callable[[Sequence[FloatArray], Sequence[Box], np.random.Generator], Cells]] = {
    "sorted": sorted_in,
    "exchange": exchanged,
}


def move_blocks(latents: Tensor, source: Cells) -> Tensor:
    """Latents (c, h, w) whose cell i holds the block of cell source[i]; cells are as many as h / side makes blocks.

    Raises:
        ConfigError: latents that do not fall into such blocks.
    """
    channels, height, width = latents.shape
    side = round(len(source) ** 0.5)
    if side * side != len(source) or height % side or width % side:
        raise ConfigError(f"latents of {height} × {width} do not fall into {len(source)} blocks")
    tall, wide = height // side, width // side
    blocks = latents.reshape(channels, side, tall, side, wide).permute(1, 3, 0, 2, 4).flatten(0, 1)
    moved = blocks[source.tolist()].reshape(side, side, channels, tall, wide).permute(2, 0, 3, 1, 4)
    return moved.reshape(channels, height, width)
