"""Pictures for pre-training: read once, scaled to one size, and kept as one array that every epoch reads from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.media import open_picture, pixels_of
from udr.artifacts import read_json, replacing, write_json
from udr.errors import DataError
from udr.types import Progress

__all__ = ["Pictures", "Row", "batches", "picture_rows", "prepare_pictures", "read_pictures"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
AT_ONCE = 64  # pictures a process decodes between two tellings
TOLD = 20  # of those that cannot be read, by name


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size.

    Args:
        pixels: (n, 3, size, size), uint8.
        names: of each, a file or a row.
        labels: of each, where the source has some.
        left_out: of those that could not be read, a line each; the first ones.
        unread: how many could not be read.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    unread: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Labels as numbers, (n,), in the order of the alphabet.

        Raises:
            DataError: the source has no labels.
        """
        if self.labels is None:
            raise DataError("the pictures have no labels: name a folder for each class, or give a `label` column")
        return np.unique(self.labels, return_inverse=True)[1].astype(np.int64)


Row = tuple[str, bytes | Path, str | None]  # name, picture, label


def picture_rows(source: Path, split: str | None) -> Iterator[Row]:
    """Name, picture and label of each, in an order that does not change.

    Raises:
        DataError: no folder, and no Parquet table with a column `image`.
    """
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        nested = any(p.parent != source for p in files)
        for path in files:
            yield str(path.relative_to(source)), path, path.parent.relative_to(source).as_posix() if nested else None
        return
    if source.suffix != ".parquet" or not source.is_file():
        raise DataError(f"{source}: expected a folder of pictures, or a .parquet with a column `image`")
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as table:
        columns = [name for name in ("image", "label", "split") if name in table.schema_arrow.names]
        if "image" not in columns:
            raise DataError(f"{source}: no column 'image'; it has {', '.join(table.schema_arrow.names)}")
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                if split is None or row.get("split", split) == split:
                    picture = row["image"]
                    raw = picture.get("bytes") if isinstance(picture, dict) else picture  # the hub's form, or bytes
                    label = None if row.get("label") is None else str(row["label"])
                    yield f"{source.name}:{number}", raw if isinstance(raw, bytes) else b"", label


def _decoded(rows: Sequence[Row], size: int) -> list[NDArray[np.uint8] | str]:
    """Of each its pixels, or what is wrong with it."""
    found: list[NDArray[np.uint8] | str] = []
    for name, picture, _ in rows:
        try:
            found.append(pixels_of(open_picture(picture, name), size))
        except DataError as error:
            found.append(str(error))
    return found


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Groups of `size` rows, the last one perhaps smaller."""
    left = iter(rows)
    while batch := list(islice(left, size)):
        yield batch


def prepare_pictures(
    source: Path, size: int, cache: Path, split: str | None = None, workers: int = 2, progress: Progress | None = None
) -> Pictures:
    """Read a folder (a subfolder a class) or a Parquet table (`image`, maybe `label` and `split`), or what was kept.

    What is no picture is left out and counted. The array is kept in `cache` under the source's names and sizes, so a
    second run reads it at once.

    Raises:
        DataError: no such source, or nothing in it can be read.
    """
    rows = list(picture_rows(source, split))
    key = hashlib.blake2b(json.dumps([size, split, _state(source, rows)]).encode(), digest_size=8).hexdigest()
    array, facts = cache / f"{key}.npy", cache / f"{key}.json"
    if not facts.is_file():
        if not rows:
            raise DataError(f"{source}: no pictures{f' of split {split}' if split else ''}")
        _prepare(rows, size, array, facts, workers, progress)
    return read_pictures(array, facts)


def _state(source: Path, rows: Sequence[Row]) -> Any:
    if source.is_dir():
        return [[name, path.stat().st_size] for name, path, _ in rows if isinstance(path, Path)]
    return [str(source.resolve()), source.stat().st_size, source.stat().st_mtime_ns]


def _prepare(rows: Sequence[Row], size: int, array: Path, facts: Path, workers: int, progress: Progress | None) -> None:
    kept: list[int] = []
    wrong: list[str] = []
    array.parent.mkdir(parents=True, exist_ok=True)
    with replacing(array) as temporary:
        file = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(rows), 3, size, size))
        done = 0
        for decoded in _in_processes(list(batches(rows, AT_ONCE)), size, workers):
            for one in decoded:
                if isinstance(one, str):
                    wrong.append(one)
                else:
                    file[len(kept)] = one
                    kept.append(done)
                done += 1
            if progress:
                progress(done, len(rows))
        file.flush()
        del file
    if not kept:
        raise DataError(f"none of {len(rows)} pictures can be read; the first: {wrong[0]}")
    labels = [rows[i][2] for i in kept]
    said = {"names": [rows[i][0] for i in kept], "labels": None if None in labels else labels}
    write_json(facts, {**said, "left_out": wrong[:TOLD], "unread": len(wrong)})


def _in_processes(batches: list[list[Row]], size: int, workers: int) -> Iterator[list[NDArray[np.uint8] | str]]:
    """In order; small sources are not worth a process."""
    if workers < 2 or len(batches) < 2 * workers:
        yield from (_decoded(batch, size) for batch in batches)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_decoded, batches, [size] * len(batches))


def read_pictures(array: Path, facts: Path) -> Pictures:
    """Open what `prepare_pictures` kept."""
    known = read_json(facts)
    labels = known["labels"]
    return Pictures(
        np.load(array, mmap_mode="r")[: len(known["names"])],
        tuple(known["names"]),
        None if labels is None else tuple(labels),
        tuple(known["left_out"]),
        int(known["unread"]),
    )
