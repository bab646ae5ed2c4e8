"""Tables of labelled pictures from packages: CIFAR-10 from BIG-bench, files in MNIST's format, emoji in two styles."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from training.emoji import read_emoji
from udr.artifacts import replacing
from udr.bigbench import read_tasks
from udr.errors import DataError

__all__ = ["cifar10_table", "idx_table", "style_tables"]

CIFAR10 = "cifar10_classification/base64"  # the task that holds its test set
TEST_OF_CLASS = 200  # of a class's 1,000 pictures
UNSEEN = 4  # one emoji in so many is split test
PARTS = {"train": "train", "t10k": "test"}  # as MNIST and those after it name their files
IMAGES, LABELS = 2051, 2049  # what such files begin with
SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string()), ("split", pa.string())])

Row = tuple[bytes, str, str]  # picture, label, split


def cifar10_table(archive: Path, out: Path) -> int:
    """Write CIFAR-10's test set, which BIG-bench's package holds, with a fifth of each class as split test.

    Raises:
        DataError: the archive is damaged or lacks it.
    """
    ((_, task),) = read_tasks(archive, {CIFAR10})
    of_class: dict[str, list[bytes]] = defaultdict(list)
    for example in task["examples"]:
        label = max(example["target_scores"], key=lambda name: example["target_scores"][name])
        of_class[label].append(base64.b64decode(example["input"]))

    def rows() -> Iterator[Row]:
        for label, pictures in sorted(of_class.items()):
            for i, raw in enumerate(sorted(pictures, key=lambda raw: hashlib.sha256(raw).digest())):
                yield raw, label, "test" if i < TEST_OF_CLASS else "train"

    return _write(out, rows())


def idx_table(folder: Path, out: Path) -> int:
    """Write pictures of files in MNIST's format (train-images-idx3-ubyte.gz and so on), as Fashion-MNIST's.

    Raises:
        DataError: a file is missing or damaged.
    """

    def rows() -> Iterator[Row]:
        for part, split in PARTS.items():
            pictures = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", IMAGES)
            labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", LABELS)
            if len(pictures) != len(labels):
                raise DataError(f"{folder}: {len(pictures)} pictures and {len(labels)} labels of {part}")
            for pixels, label in zip(pictures, labels, strict=True):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                yield file.getvalue(), str(label), split

    return _write(out, rows())


def style_tables(archives: dict[str, Path], out: Path) -> dict[Path, int]:
    """Write OUT/STYLE.parquet of emoji that every style has; the label is the emoji, so that pairs can be scored.

    A quarter of the emoji, drawn by their code points alone, is split test in all styles.

    Raises:
        DataError: an archive is damaged, or the styles have no emoji in common.
    """
    of_style = {style: read_emoji(archive, style) for style, archive in archives.items()}
    shared = sorted(set.intersection(*(set(own) for own in of_style.values())))
    if not shared:
        raise DataError(f"{', '.join(map(str, archives.values()))}: no emoji that all of them have")
    found = {}
    for style, own in of_style.items():
        path = out / f"{style}.parquet"
        found[path] = _write(path, [(own[code], code, _split_of(code)) for code in shared])
    return found


def _split_of(code: str) -> str:
    return "train" if hashlib.sha256(code.encode()).digest()[0] % UNSEEN else "test"


def _read_idx(path: Path, kind: int) -> NDArray[np.uint8]:
    try:
        raw = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error):
        raise DataError(f"{path}: damaged") from None
    dimensions = kind & 0xFF
    header = struct.unpack_from(f">{dimensions + 1}i", raw) if len(raw) >= 4 * (dimensions + 1) else (0,)
    if header[0] != kind or len(raw) != 4 * len(header) + int(np.prod(header[1:])):
        raise DataError(f"{path}: not in MNIST's format")
    return np.frombuffer(raw, np.uint8, offset=4 * len(header)).reshape(header[1:])


def _write(out: Path, rows: Iterable[Row]) -> int:
    """Write a table; give its rows."""
    columns = list(zip(*rows, strict=True))
    with replacing(out) as temporary:
        pq.write_table(pa.table([list(c) for c in columns], schema=SCHEMA), temporary)
    return len(columns[0])
