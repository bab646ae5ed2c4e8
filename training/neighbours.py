"""The nearest pictures of a pool, by whole pictures or by a region of them: `udr neighbours`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from embed.image import ImageEncoder
from embed.media import open_picture, picture_bytes, pixels_of
from training.embed_pictures import Encoded, encode_rows, whole_pictures
from training.pictures import ENDINGS, Row, is_utf8, most_pictures, of_split, picture_rows
from udr.draw import seeded
from udr.errors import ConfigError, DataError
from udr.index import FlatIndex
from udr.types import Encoder, FloatArray, Progress

__all__ = [
    "Answer",
    "Box",
    "Neighbour",
    "Region",
    "nearest",
    "nearest_regions",
    "parse_region",
    "sample_rows",
    "shares",
]

Region = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of a picture as it is
Box = tuple[float, float, float, float]  # the same in shares of its middle square, which is what encoders see


@dataclass(frozen=True)
class Neighbour:
    """A picture of the pool.

    Args:
        row: its name, itself, its label.
        similarity: cosine.
        right: whether its label is the query's; None where one of them has none.
        box: the region that was found.
    """

    row: Row
    similarity: float
    right: bool | None
    box: Box | None = None


@dataclass(frozen=True)
class Answer:
    """A query and its nearest pictures, best first; `box` is the region that was asked for."""

    row: Row
    neighbours: tuple[Neighbour, ...]
    box: Box | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures; boxes in shares of the middle square."""
        near = [
            {"name": n.row[0], "label": n.row[2], "similarity": round(n.similarity, 4), "right": n.right}
            | ({"box": [round(side, 4) for side in n.box]} if n.box else {})
            for n in self.neighbours
        ]
        return {"name": self.row[0], "label": self.row[2], "neighbours": near}


def sample_rows(source: Path, split: str | None, count: int, seed: int = 0) -> list[Row]:
    """At most `count` pictures of a folder, a table, or the one picture that a file is; drawn evenly, in their order.

    A reservoir (Vitter 1985, Random sampling with a reservoir, algorithm R), so that no more are held than are given.

    Raises:
        DataError: as `picture_rows`; no pictures.
    """
    if source.is_file() and source.suffix.lower() in ENDINGS:
        if not is_utf8(source.name):
            raise DataError(f"{source.name!r}: a name that is not UTF-8")
        return [(source.name, source, None)]
    rng, kept = seeded("sample", seed), list[tuple[int, Row]]()
    for number, row in enumerate(picture_rows(source, split)):
        if number < count:
            kept.append((number, row))
        elif (place := int(rng.integers(number + 1))) < count:
            kept[place] = number, row
    if not kept:
        raise DataError(f"{source}: no pictures{of_split(split)}")
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def nearest(
    queries: Sequence[Row],
    pool: Path,
    split: str | None,
    encoder: Encoder,
    k: int = 8,
    progress: Progress | None = None,
) -> list[Answer]:
    """The `k` nearest of a pool to each query that can be read; a picture is no neighbour of itself.

    Raises:
        DataError: no such pool, or no query or nothing of it can be read.
    """
    encode = whole_pictures(encoder)
    asked, vectors = _asked(queries, encode_rows(queries, encode))
    index, same = FlatIndex(encoder.dim, encoder.fingerprint), _Same(asked)
    for found in encode_rows(picture_rows(pool, split), encode, progress, most_pictures(pool)):
        index.add(np.array(found.numbers, np.int64), found.vectors.reshape(-1, encoder.dim), encoder.fingerprint)
        same.look(found.numbers, found.rows)
    _check_pool(pool, split, len(index))
    hits = index.search(vectors, k + same.most, encoder.fingerprint)
    chosen = [
        [(int(i), float(s), None) for i, s in zip(rows, scores, strict=True) if i >= 0 and i not in own][:k]
        for rows, scores, own in zip(hits.rows, hits.scores, same.numbers, strict=True)
    ]
    return _answers(asked, chosen, pool, split, [None] * len(asked))


def nearest_regions(
    queries: Sequence[Row],
    region: Region,
    pool: Path,
    split: str | None,
    encoder: ImageEncoder,
    k: int = 8,
    progress: Progress | None = None,
) -> list[Answer]:
    """The `k` pictures of a pool that hold what each query shows in a region, wherever they hold it.

    The region's vector is the mean of its cells', and a picture is as near as the best of its blocks of as many cells.
    Every picture is compared while its cells are at hand: nothing of the pool is kept but one number a query.

    Raises:
        ConfigError: a region that is empty, or outside the middle square of a query.
        DataError: no such pool, or no query or nothing of it can be read.
    """

    def encode(rows: Sequence[Row]) -> FloatArray:
        size = encoder.backbone.size
        cells = encoder.encode_regions(np.stack([pixels_of(open_picture(r[1], r[0]), size) for r in rows]))
        side = round(cells.shape[1] ** 0.5)
        return cells.reshape(len(rows), side, side, -1)

    asked, cells = _asked(queries, encode_rows(queries, encode))
    side = cells.shape[1]
    boxes = [shares(region, *open_picture(row[1], row[0]).size, row[0]) for row in asked]
    blocks = [_cells_of(box, side) for box in boxes]
    wanted = [_unit(own[y0:y1, x0:x1].mean((0, 1))) for own, (x0, y0, x1, y1) in zip(cells, blocks, strict=True)]
    same, numbers, best = _Same(asked), list[int](), [list[NDArray[np.float64]]() for _ in asked]
    for found in encode_rows(picture_rows(pool, split), encode, progress, most_pictures(pool)):
        if found.rows:
            same.look(found.numbers, found.rows)
            numbers += found.numbers
            for parts, vector, block in zip(best, wanted, blocks, strict=True):
                parts.append(_best_blocks(found.vectors, vector, block))
    _check_pool(pool, split, len(numbers))
    chosen = []
    for parts, block, known in zip(best, blocks, same.numbers, strict=True):
        table = np.concatenate(parts)
        order = [i for i in np.argsort(-table[:, 0], kind="stable") if numbers[i] not in known][:k]
        chosen.append([(numbers[i], float(table[i, 0]), _box_at(table[i, 1:], block, side)) for i in order])
    return _answers(asked, chosen, pool, split, boxes)


def parse_region(text: str) -> Region:
    """Read X0,Y0,X1,Y1.

    Raises:
        ConfigError: no four whole numbers, or an empty region.
    """
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--region {text}: expected X0,Y0,X1,Y1, whole pixels of the query") from None
    if x0 >= x1 or y0 >= y1:
        raise ConfigError(f"--region {text}: empty; expected left, top, right and bottom")
    return x0, y0, x1, y1


def shares(region: Region, width: int, height: int, name: str = "picture") -> Box:
    """A region of a picture in shares of its middle square.

    Raises:
        ConfigError: it is empty, or outside that square.
    """
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    x0, y0, x1, y1 = region
    box = tuple(
        min(1.0, max(0.0, value))
        for value in ((x0 - left) / side, (y0 - top) / side, (x1 - left) / side, (y1 - top) / side)
    )
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ConfigError(
            f"--region {','.join(map(str, region))}: nothing of {name} ({width} x {height} pixels, of which the middle "
            f"{side} x {side} are encoded)"
        )
    return box[0], box[1], box[2], box[3]


def _cells_of(box: Box, side: int) -> Region:
    """The block of cells whose middles a box holds, or else the one that holds the box's middle."""
    sides = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        inside = [i for i in range(side) if low <= (i + 0.5) / side <= high]
        middle = min(side - 1, int((low + high) / 2 * side))
        sides.append((inside[0], inside[-1] + 1) if inside else (middle, middle + 1))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def _best_blocks(cells: FloatArray, wanted: FloatArray, block: Region) -> NDArray[np.float64]:
    """Of pictures (m, h, w, d), cosine, column and row of the best block of cells, (m, 3)."""
    x0, y0, x1, y1 = block
    means = sliding_window_view(cells, (y1 - y0, x1 - x0), axis=(1, 2)).mean((-2, -1))  # (m, rows, columns, d)
    cosines = (_unit(means) @ wanted).reshape(len(cells), -1)
    row, column = np.divmod(cosines.argmax(1), means.shape[2])
    return np.stack([cosines.max(1), column, row], 1).astype(np.float64)


def _box_at(place: NDArray[np.float64], block: Region, side: int) -> Box:
    x, y = place
    x0, y0, x1, y1 = block
    return float(x) / side, float(y) / side, float(x + x1 - x0) / side, float(y + y1 - y0) / side


def _unit(vectors: FloatArray) -> FloatArray:
    normed: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return normed


class _Same:
    """Which pictures of the pool are the queries themselves, byte for byte."""

    def __init__(self, queries: Sequence[Row]) -> None:
        self._known = [_digest(row) for row in queries]
        self.numbers: list[set[int]] = [set() for _ in queries]

    @property
    def most(self) -> int:
        return max(map(len, self.numbers), default=0)

    def look(self, numbers: Iterable[int], rows: Iterable[Row]) -> None:
        for number, row in zip(numbers, rows, strict=True):
            digest = _digest(row)
            for own, known in zip(self.numbers, self._known, strict=True):
                if digest == known:
                    own.add(number)


def _digest(row: Row) -> bytes:
    return hashlib.blake2b(picture_bytes(row[1], row[0]), digest_size=16).digest()


def _asked(queries: Sequence[Row], found: Iterable[Encoded]) -> tuple[list[Row], FloatArray]:
    """Those of the queries that can be read, and their vectors."""
    parts = [part for part in found if part.rows]
    if not parts:
        raise DataError(f"none of {len(queries)} queries can be read")
    return [row for part in parts for row in part.rows], np.concatenate([part.vectors for part in parts])


def _check_pool(pool: Path, split: str | None, count: int) -> None:
    if not count:
        raise DataError(f"{pool}: nothing{of_split(split)} in it can be read")


def _answers(
    asked: Sequence[Row],
    chosen: Sequence[Sequence[tuple[int, float, Box | None]]],
    pool: Path,
    split: str | None,
    boxes: Sequence[Box | None],
) -> list[Answer]:
    """Fetch the pictures that were chosen; the pool is read again, for it may be larger than memory."""
    wanted = {number for own in chosen for number, _, _ in own}
    rows = {number: row for number, row in enumerate(picture_rows(pool, split)) if number in wanted}
    answers = []
    for query, own, box in zip(asked, chosen, boxes, strict=True):
        near = []
        for number, score, found_at in own:
            label = rows[number][2]
            right = None if query[2] is None or label is None else query[2] == label
            near.append(Neighbour(rows[number], score, right, found_at))
        answers.append(Answer(query, tuple(near), box))
    return answers
