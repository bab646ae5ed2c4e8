"""Pictures with labels of many kinds: a Parquet table whose columns are maps, as PNG files, and words."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from embed.media import open_picture, pixels_of
from embed.multi_task_nets import DenseKind
from udr.errors import DataError
from udr.types import Progress

__all__ = ["UNKNOWN", "Annotated", "read_annotated"]

UNKNOWN = 255  # of a segmentation: pixels that are not learnt from
TOLD = 20  # of pictures that cannot be read, by name


@dataclass(frozen=True)
class Annotated:
    """Pictures of one size and what is known of them; a `training.loop.Material` whose batch is the rows' numbers.

    Args:
        pixels: (n, 3, size, size), uint8.
        dense: of each dense task (n, size, size): classes (uint8, `UNKNOWN` where none is known), depths from 0 to 1
            (float16, 0 where none is known), or 0 and 1 (uint8).
        attributes: of each attribute the numbers of its classes (n,), −1 where none is known.
        classes: of each attribute the words that the numbers stand for.
        left_out: of rows that could not be read, a line each; the first ones.
        unread: how many could not be read.
    """

    pixels: NDArray[np.uint8]
    dense: dict[str, NDArray[Any]]
    attributes: dict[str, NDArray[np.int64]]
    classes: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()
    unread: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows' numbers, by which the method finds pictures and labels."""
        return rows

    def some(self, rows: NDArray[np.int64]) -> Annotated:
        """Those of some rows."""
        dense = {task: maps[rows] for task, maps in self.dense.items()}
        attributes = {task: numbers[rows] for task, numbers in self.attributes.items()}
        return Annotated(self.pixels[rows], dense, attributes, self.classes, self.left_out, self.unread)


def read_annotated(
    source: Path,
    dense: Mapping[str, DenseKind],
    attributes: Sequence[str],
    size: int,
    split: str | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
    progress: Progress | None = None,
) -> Annotated:
    """Read a table with a column `image`, one of PNG files for each dense task, and one of words for each attribute.

    Maps are cut and scaled as their pictures are, to the nearest pixel. All is kept in memory: of 10,000 pictures of 64
    pixels with four maps some 330 MB. Rows whose picture cannot be read are left out and counted.

    Args:
        dense: kind of each dense task, which its column is called by.
        attributes: columns of words; null where the word is not known.
        size: pixels of a side.
        split: which rows; none: all.
        classes: words that attributes have; none: those of these rows, in the order of the alphabet. Other words are
            taken as not known.

    Raises:
        DataError: no such table or column, nothing that can be read, a map that is none, or an attribute of one word.
    """
    pixels: list[NDArray[np.uint8]] = []
    maps: dict[str, list[NDArray[Any]]] = {task: [] for task in dense}
    words: dict[str, list[str | None]] = {name: [] for name in attributes}
    wrong: list[str] = []
    count = 0
    for where, row, total in _rows(source, ["image", *dense, *attributes], split):
        count += 1
        try:
            picture = open_picture(_bytes(row["image"]), where)
        except DataError as error:
            wrong.append(str(error))
            continue
        pixels.append(pixels_of(picture, size))
        for task, kind in dense.items():
            maps[task].append(_map(_bytes(row[task]), kind, picture.size, size, f"{where}, {task}"))
        for name in attributes:
            words[name].append(None if row[name] is None else str(row[name]))
        if progress:
            progress(count, total)
    if not pixels:
        why = f"none of {len(wrong)} pictures can be read; the first: {wrong[0]}" if wrong else "no pictures"
        raise DataError(f"{source}: {why}{f' of split {split}' if split else ''}")
    known = {name: _classes(source, name, words[name]) if classes is None else classes[name] for name in attributes}
    return Annotated(
        np.stack(pixels),
        {task: np.stack(own) for task, own in maps.items()},
        {name: _numbers(words[name], known[name]) for name in attributes},
        known,
        tuple(wrong[:TOLD]),
        len(wrong),
    )


def _rows(source: Path, columns: list[str], split: str | None) -> Any:
    """Name and row of each of a split, and how many rows there are at most."""
    if source.suffix != ".parquet" or not source.is_file():
        raise DataError(f"{source}: expected a .parquet with a column `image` and one for each task")
    wanted = [*columns, *(["split"] if split is not None else [])]
    try:
        with pq.ParquetFile(source) as table:
            known = table.schema_arrow.names
            for column in wanted:
                if column not in known:
                    raise DataError(f"{source}: no column {column!r}; it has {', '.join(known)}")
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    if split is None or str(row["split"]) == split:
                        yield f"{source.name}:{number}", row, int(table.metadata.num_rows)
    except pa.ArrowException as error:
        raise DataError(f"{source}: not Parquet ({str(error).splitlines()[0]})") from None


def _bytes(value: Any) -> bytes:
    raw = value.get("bytes") if isinstance(value, dict) else value  # the hub's form, or bytes
    return raw if isinstance(raw, bytes) else b""


def _map(raw: bytes, kind: DenseKind, picture: tuple[int, int], size: int, where: str) -> NDArray[Any]:
    """A map of the picture's own size, cut and scaled as `embed.media.pixels_of` does it."""
    try:
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as opened:
            if opened.size != picture:
                raise DataError(f"{where}: {opened.size} pixels, and its picture has {picture}")
            if opened.mode.startswith("I"):
                deep, top = opened.convert("I"), 65535.0
            elif opened.mode in ("L", "P", "1"):
                deep, top = (opened if opened.mode != "1" else opened.convert("L")), 255.0
            else:
                raise DataError(f"{where}: a map has one channel, and this is {opened.mode}")
            two_valued = opened.mode == "1"
            side = min(deep.size)
            left, above = (deep.width - side) / 2, (deep.height - side) / 2
            box = (left, above, left + side, above + side)
            found = np.asarray(deep.resize((size, size), Image.Resampling.NEAREST, box=box))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: no PNG file") from None
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        raise DataError(f"{where}: a damaged PNG file ({type(error).__name__})") from None
    if kind == "depth":
        return (found / top).astype(np.float16)
    if kind == "segmentation" and not two_valued:
        if found.max() > UNKNOWN:
            raise DataError(f"{where}: class {found.max()}; 254 is the last, and {UNKNOWN} says that none is known")
        return found.astype(np.uint8)
    return (found > (0 if found.max() <= 1 else top / 2)).astype(np.uint8)  # masks are of 0 and 1, or 0 and `top`


def _classes(source: Path, name: str, words: Sequence[str | None]) -> tuple[str, ...]:
    found = tuple(sorted({word for word in words if word is not None}))
    if len(found) < 2:
        raise DataError(f"{source}: column {name!r} has {len(found)} different words; an attribute wants two at least")
    return found


def _numbers(words: Sequence[str | None], classes: Sequence[str]) -> NDArray[np.int64]:
    places = {word: i for i, word in enumerate(classes)}
    return np.array([-1 if word is None else places.get(word, -1) for word in words], np.int64)
