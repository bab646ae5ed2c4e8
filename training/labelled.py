"""Things with any number of labels each: one Parquet table, and what training draws from it.

A row is one thing: `id`, `image` (bytes of a picture) or `text`, `labels` (a list of texts), and, where known, `boxes`
(of the same length, each [x0, y0, x1, y1] as shares of the picture's sides) and `split`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.labeller import text_inputs
from embed.labelling import Reads
from embed.media import open_picture, pixels_of
from training.pictures import batches
from udr.artifacts import replacing
from udr.encoder import BiEncoder
from udr.errors import DataError
from udr.types import Progress

__all__ = ["Box", "Labelled", "LabelledThings", "label_names", "prepare_labelled", "read_labelled", "write_labelled"]

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the sides
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("split", pa.string()),
    ]
)
AT_ONCE = 256  # rows of a row group


@dataclass(frozen=True, slots=True)
class Labelled:
    """One thing."""

    id: str
    image: bytes
    text: str
    labels: tuple[str, ...]
    boxes: tuple[Box, ...] = ()  # of the labels, where they are known
    split: str = "train"


def write_labelled(out: Path, rows: Iterable[Labelled]) -> int:
    """Write a table, whole or not at all; give its rows."""
    count = 0
    with replacing(out) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for batch in batches(rows, AT_ONCE):
            dicts = [{name: getattr(row, name) for name in SCHEMA.names} for row in batch]
            writer.write_table(pa.Table.from_pylist(dicts, schema=SCHEMA))
            count += len(batch)
    return count


def read_labelled(source: Path, split: str | None = None) -> list[Labelled]:
    """Read a table.

    Raises:
        DataError: no such table, a column that is missing or of another form, or no rows.
    """
    if source.suffix != ".parquet" or not source.is_file():
        raise DataError(f"{source}: expected a .parquet with columns labels and image or text")
    try:
        with pq.ParquetFile(source) as table:
            known = table.schema_arrow.names
            if "labels" not in known or not {"image", "text"} & set(known) or (split is not None) > ("split" in known):
                needed = "labels, image or text" + ("" if split is None else ", split")
                raise DataError(f"{source}: expected columns {needed}; it has {', '.join(known)}")
            columns = [name for name in SCHEMA.names if name in known]
            parts = table.iter_batches(batch_size=AT_ONCE, columns=columns)
            rows = [row for batch in parts for row in batch.to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: not Parquet ({str(error).splitlines()[0]})") from None
    found = [_row(row, f"{source}:{number}") for number, row in enumerate(rows, 1)]
    chosen = [one for one in found if split is None or one.split == split]
    if not chosen:
        raise DataError(f"{source}: no rows{f' of split {split}' if split is not None else ''}")
    return chosen


def _row(row: dict[str, Any], where: str) -> Labelled:
    labels, boxes, image = row["labels"], row.get("boxes") or (), row.get("image") or b""
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise DataError(f"{where}: labels: expected a list of texts")
    if len(set(labels)) < len(labels):
        raise DataError(f"{where}: labels: one stands twice")
    if isinstance(image, dict):  # the hub's form
        image = image.get("bytes") or b""
    if not isinstance(image, bytes):
        raise DataError(f"{where}: image: expected the bytes of a picture")
    try:
        corners = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes)
    except (TypeError, ValueError):
        raise DataError(f"{where}: boxes: expected four numbers each") from None
    if corners and len(corners) != len(labels):
        raise DataError(f"{where}: {len(corners)} boxes of {len(labels)} labels")
    text, split = str(row.get("text") or ""), str(row.get("split") or "train")
    return Labelled(str(row.get("id") or where), image, text, tuple(labels), corners, split)


def label_names(rows: Sequence[Labelled], fewest: int = 1) -> list[str]:
    """Labels of at least `fewest` rows, the most frequent first, then by the alphabet.

    Raises:
        DataError: there is none.
    """
    counts = Counter(label for row in rows for label in row.labels)
    names = sorted((n for n, count in counts.items() if count >= fewest), key=lambda name: (-counts[name], name))
    if not names:
        raise DataError(f"no label stands in {fewest} rows")
    return names


@dataclass(frozen=True)
class LabelledThings:
    """Things as arrays; the loop draws their numbers.

    Args:
        inputs: pixels (n, 3, s, s), uint8, or `text_inputs`.
        targets: (n, c) which labels are true.
        names: of the labels.
        rows: where they come from.
        left_out: pictures that could not be read, a line each.
    """

    inputs: Tensor
    targets: Tensor
    names: tuple[str, ...]
    rows: tuple[Labelled, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers themselves."""
        return rows

    @property
    def most(self) -> int:
        """Labels of one thing at most."""
        return int(self.targets.sum(1).max())


def prepare_labelled(
    rows: Sequence[Labelled],
    reads: Reads,
    size: int,
    names: Sequence[str] | None = None,
    fewest: int = 1,
    encoder: BiEncoder | None = None,
    progress: Progress | None = None,
) -> LabelledThings:
    """Open pictures, or split texts; what cannot be read is left out.

    Args:
        rows: the things.
        reads: image or text.
        size: pixels of a side.
        names: of the labels that are known; None: those of at least `fewest` rows.
        fewest: see there.
        encoder: reads texts for the net; None: it reads them itself.
        progress: told after each thing.

    Raises:
        DataError: nothing can be read, or no label is frequent enough.
    """
    names = list(names) if names is not None else label_names(rows, fewest)
    place = {name: i for i, name in enumerate(names)}
    kept: list[Labelled] = []
    pixels: list[NDArray[np.uint8]] = []
    wrong: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            if reads == "image":
                pixels.append(pixels_of(open_picture(row.image, row.id), size))
            elif not row.text.strip():
                raise DataError(f"{row.id}: no text")
            kept.append(row)
        except DataError as error:
            wrong.append(str(error))
        if progress:
            progress(number, len(rows))
    if not kept:
        raise DataError(f"none of {len(rows)} things can be read; the first: {wrong[0]}")
    inputs = (
        torch.from_numpy(np.stack(pixels)) if reads == "image" else text_inputs([row.text for row in kept], encoder)
    )
    targets = torch.zeros(len(kept), len(names), dtype=torch.bool)
    for i, row in enumerate(kept):
        targets[i, [place[label] for label in row.labels if label in place]] = True
    return LabelledThings(inputs, targets, tuple(names), tuple(kept), tuple(wrong))
