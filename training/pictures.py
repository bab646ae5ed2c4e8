"""Pictures for pre-training: read once, scaled to one size, and kept as one array that every epoch reads from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from embed.media import open_picture, pixels_of
from udr.artifacts import read_json, replacing, write_json
from udr.errors import ArtifactError, DataError, UDRWarning
from udr.types import Progress

__all__ = [
    "Pictures",
    "Row",
    "batches",
    "folder_rows",
    "is_utf8",
    "most_pictures",
    "of_split",
    "picture_rows",
    "prepare_pictures",
    "read_pictures",
    "tell_left_out",
]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
AT_ONCE = 64  # pictures a process decodes between two tellings
FEW = 4 * AT_ONCE  # pictures that one process decodes
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

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels of some (n, 3, size, size)."""
        return np.asarray(self.pixels[rows])

    @property
    def classes(self) -> NDArray[np.int64]:
        """Labels as numbers, (n,), in the order of the alphabet.

        Raises:
            DataError: the source has no labels.
        """
        if self.labels is None:
            raise DataError("the pictures have no labels: name a folder for each class, or give a `label` column")
        return np.unique(self.labels, return_inverse=True)[1].astype(np.int64)


T = TypeVar("T")
Row = tuple[str, bytes | Path, str | None]  # name, picture, label


def picture_rows(source: Path, split: str | None, ids: bool = False) -> Iterator[Row]:
    """Name, picture and label of each, in an order that does not change.

    Args:
        source: a folder or a table.
        split: of a table.
        ids: rows of a table go by its column `id`, where it has one and they have an id.

    Raises:
        DataError: no folder, and no Parquet table with a column `image`; a split where there are none; labels in some
            rows alone.
    """
    if source.is_dir():
        if split is not None:
            raise DataError(
                f"{source}: a folder has no splits (set split=null and held_out=null); a table may have some"
            )
        yield from folder_rows(source, ENDINGS)
        return
    labelled: set[bool] = set()
    number = 0
    for batch in _batches_of(source, split):
        for row in batch:
            number += 1
            if split is None or str(row["split"]) == split:
                picture = row["image"]
                raw = picture.get("bytes") if isinstance(picture, dict) else picture  # the hub's form, or bytes
                if not isinstance(raw, bytes | None):
                    raise DataError(f"{source}: column 'image' holds {type(raw).__name__}, not the bytes of pictures")
                label = None if row.get("label") is None else str(row["label"])
                labelled.add(label is None)
                if len(labelled) > 1:
                    raise DataError(f"{source}:{number}: some rows have a label and others have none")
                name = str(row.get("id") or "") if ids else ""
                yield name or f"{source.name}:{number}", raw or b"", label


def of_split(split: str | None) -> str:
    """How a message ends that is about one split."""
    return "" if split is None else f" of split {split}"


def folder_rows(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, Path, str | None]]:
    """Name, path and label of each file with such an ending; the label is its subfolder, where there are some.

    A name that is not UTF-8 is left out with a warning.

    Raises:
        DataError: files beside the folders of classes.
    """
    files = []
    for path in _files(folder, endings):
        if is_utf8(str(path.relative_to(folder))):
            files.append(path)
        else:  # no table, no JSON and no terminal takes such a name
            warn(f"left out: {path.name!r}: a name that is not UTF-8", UDRWarning, stacklevel=2)
    nested = any(p.parent != folder for p in files)
    for path in files:
        if nested and path.parent == folder:
            raise DataError(f"{path}: beside the folders of classes; move it into one")
        yield str(path.relative_to(folder)), path, path.parent.relative_to(folder).as_posix() if nested else None


def is_utf8(name: str) -> bool:
    """False for a name of a file with other bytes, which Python holds as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(folder: Path, endings: tuple[str, ...] = ENDINGS) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings and p.is_file())


def _batches_of(source: Path, split: str | None) -> Iterator[list[dict[str, Any]]]:
    """Rows of a table, some hundred at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.suffix != ".parquet" or not source.is_file():
        raise DataError(f"{source}: expected a folder of pictures, or a .parquet with a column `image`")
    try:
        with pq.ParquetFile(source) as table:
            known = table.schema_arrow.names
            for column in ("image", *(["split"] if split is not None else [])):
                if column not in known:
                    raise DataError(f"{source}: no column {column!r}; it has {', '.join(known)}")
            columns = [name for name in ("id", "image", "label", "split") if name in known]
            for batch in table.iter_batches(batch_size=256, columns=columns):
                yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: not Parquet ({str(error).splitlines()[0]})") from None


def _decoded(rows: Sequence[Row], size: int) -> list[NDArray[np.uint8] | str]:
    """Of each its pixels, or what is wrong with it."""
    found: list[NDArray[np.uint8] | str] = []
    for name, picture, _ in rows:
        try:
            found.append(pixels_of(open_picture(picture, name), size))
        except DataError as error:
            found.append(str(error))
    return found


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
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
    key = hashlib.blake2b(json.dumps([size, split, _state(source)]).encode(), digest_size=8).hexdigest()
    array, facts = cache / f"{key}.npy", cache / f"{key}.json"
    if not facts.is_file():
        _prepare(source, split, size, array, facts, workers, progress)
    return read_pictures(array, facts)


def _state(source: Path) -> Any:
    """What changes when a picture does."""
    files = _files(source) if source.is_dir() else [source] if source.is_file() else []
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files] or str(source.resolve())


def most_pictures(source: Path) -> int:
    """How many there may be at most, over all splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.is_dir():
        return len(_files(source))
    try:
        return int(pq.read_metadata(source).num_rows)
    except (OSError, pa.ArrowException):  # told where it is read
        return 0


def _prepare(
    source: Path, split: str | None, size: int, array: Path, facts: Path, workers: int, progress: Progress | None
) -> None:
    """Decode as they come, so that no more pictures are held than are worked on."""
    names: list[str] = []
    labels: list[str | None] = []
    wrong: list[str] = []
    rows = picture_rows(source, split)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source}: no pictures{of_split(split)}")
    most = most_pictures(source)
    array.parent.mkdir(parents=True, exist_ok=True)
    with replacing(array) as temporary:
        file = np.lib.format.open_memmap(temporary, "w+", np.uint8, (most, 3, size, size))
        for (name, _, label), one in _in_processes(chain([first], rows), size, workers if most > FEW else 1):
            if isinstance(one, str):
                wrong.append(one)
            else:
                file[len(names)] = one
                names.append(name)
                labels.append(label)
            if progress:
                progress(len(names) + len(wrong), most)
        file.flush()
        del file
    if not names:
        raise DataError(f"none of {len(wrong)} pictures can be read; the first: {wrong[0]}")
    said = {"names": names, "labels": None if None in labels else labels}
    write_json(facts, {**said, "left_out": wrong[:TOLD], "unread": len(wrong)})


def _in_processes(rows: Iterable[Row], size: int, workers: int) -> Iterator[tuple[Row, NDArray[np.uint8] | str]]:
    """Rows in order, each with its pixels or what is wrong with it; a few pictures are not worth a process."""
    if workers < 2:
        for batch in batches(rows, AT_ONCE):
            yield from zip(batch, _decoded(batch, size), strict=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for group in batches(rows, AT_ONCE * workers * 4):
            parts = list(batches(group, AT_ONCE))
            for part, decoded in zip(parts, pool.map(_decoded, parts, [size] * len(parts)), strict=True):
                yield from zip(part, decoded, strict=True)


def tell_left_out(count: int, things: str, lines: Sequence[str] = ()) -> None:
    """Warn, once for all processes, of what cannot be read and is not learnt from; `lines` say what is wrong."""
    from udr.distributed import place  # torch, which the processes that decode do without

    if count and place() == 0:
        warn(f"{count} {things} left out" + (f", such as {lines[0]}" if lines else ""), UDRWarning, stacklevel=2)


def read_pictures(array: Path, facts: Path) -> Pictures:
    """Open what `prepare_pictures` kept.

    Raises:
        ArtifactError: it is damaged.
    """
    known = read_json(facts)
    labels = known["labels"]
    try:
        pixels = np.load(array, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{array}: damaged ({error}); delete it and {facts.name}") from None
    return Pictures(
        pixels[: len(known["names"])],
        tuple(known["names"]),
        None if labels is None else tuple(labels),
        tuple(known["left_out"]),
        int(known["unread"]),
    )
