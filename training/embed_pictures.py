"""Vectors of many pictures, in memory that does not grow with them: `udr embed`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from embed.media import open_picture, picture_bytes
from embed.multi_task import Attribute, MultiTaskEncoder
from embed.registry import open_encoder
from training.pictures import Row, batches, most_pictures, of_split, picture_rows
from udr.artifacts import replacing
from udr.encoder import BiEncoder
from udr.errors import ConfigError, DataError, UDRWarning
from udr.types import Encoder, FloatArray, Media, Progress, Query

__all__ = ["Encoded", "embed_pictures", "encode_rows", "open_picture_encoder", "vector_schema", "whole_pictures"]

AT_ONCE = 256  # pictures of a row group

Encode = Callable[[Sequence[Row]], FloatArray]  # (n, …), or DataError where one is no picture


class Encoded(NamedTuple):
    """Some pictures that could be read."""

    numbers: list[int]  # of each, among all that there are
    rows: list[Row]
    vectors: FloatArray  # (n, …)
    seen: int  # until now, those that could not be read included


class _Described:
    """Encodes rows by a multi-task encoder, and keeps what the same pass says of them."""

    def __init__(self, encoder: MultiTaskEncoder) -> None:
        self._encoder = encoder
        self.told: list[dict[str, Attribute]] = []

    def __call__(self, rows: Sequence[Row]) -> FloatArray:
        vectors, self.told = self._encoder.encode_described([_query(row) for row in rows])
        return vectors

    def fields(self) -> list[pa.Field]:
        """Of each attribute a column of words and one of probabilities.

        Raises:
            ConfigError: the encoder sees none, or one that is called as another column.
        """
        found = [f for a in self._encoder.classes for f in ((a, pa.string()), (f"{a}_probability", pa.float32()))]
        if not found or {"name", "label", "vector"} & {name for name, _ in found}:
            raise ConfigError("--attributes: the encoder has none, or one called name, label or vector")
        return [pa.field(*one) for one in found]

    def columns(self) -> list[list[str | float]]:
        """Values of `fields`, of the rows that were encoded last."""
        return [[row[name][i] for row in self.told] for name in self._encoder.classes for i in (0, 1)]


def embed_pictures(
    source: Path,
    address: str,
    out: Path,
    split: str | None = None,
    progress: Progress | None = None,
    attributes: bool = False,
) -> tuple[int, int]:
    """Write name, label and vector of each picture, and a warning for each that cannot be read; give both numbers.

    With `attributes` also what a multi-task encoder says of each, and how probable it is.

    Raises:
        DataError: no such source, or nothing in it can be read.
        ConfigError: the encoder reads no pictures, or sees no attributes.
    """
    encoder = open_picture_encoder(address)
    schema = vector_schema(encoder, address)
    described: _Described | None = None
    if attributes:
        if not isinstance(encoder, MultiTaskEncoder):
            raise ConfigError(f"--attributes: {address} is no multi-task encoder")
        described = _Described(encoder)
        for field in described.fields():
            schema = schema.append(field)
    done = seen = 0
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        rows = picture_rows(source, split)
        for found in encode_rows(rows, described or whole_pictures(encoder), progress, most_pictures(source)):
            if found.rows:
                columns = [[r[0] for r in found.rows], [r[2] for r in found.rows], list(found.vectors)]
                columns += described.columns() if described else []
                writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
            done, seen = done + len(found.rows), found.seen
        if not done:
            why = f"none of {seen} pictures can be read" if seen else "no pictures"
            raise DataError(f"{source}: {why}{of_split(split)}")
    return done, seen - done


def encode_rows(
    rows: Iterable[Row], encode: Encode, progress: Progress | None = None, most: int = 0
) -> Iterator[Encoded]:
    """Groups of pictures with their vectors; what cannot be read is left out with a warning.

    Args:
        rows: taken as they come.
        encode: what makes the vectors.
        progress: told after each group, with `most` as the number of rows that there may be.
    """
    seen = 0
    for group in batches(rows, AT_ONCE):
        places, readable, vectors = _encoded(group, encode)
        yield Encoded([seen + i for i in places], readable, vectors, seen + len(group))
        seen += len(group)
        if progress:
            progress(seen, most)


def whole_pictures(encoder: Encoder) -> Encode:
    """What encodes rows by an encoder, a vector each."""
    return lambda rows: encoder.encode_queries([_query(row) for row in rows])


def vector_schema(encoder: Encoder, address: str) -> pa.Schema:
    """Of a table of names, labels and vectors; it knows the encoder."""
    fields = [("name", pa.string()), ("label", pa.string()), ("vector", pa.list_(pa.float32(), encoder.dim))]
    return pa.schema(fields, metadata={"encoder": address, "fingerprint": encoder.fingerprint})


def _query(row: Row) -> Query:
    name, picture, _ = row
    return Query(name, "", media=(Media("image", data=picture_bytes(picture, name)),))


def _encoded(rows: list[Row], encode: Encode) -> tuple[list[int], list[Row], FloatArray]:
    """Those of the rows that are pictures, by their places and themselves, and their vectors."""
    try:
        return list(range(len(rows))), rows, encode(rows)
    except DataError:  # nothing is decoded twice while all is well
        places = [i for i, row in enumerate(rows) if _opens(row)]
        readable = [rows[i] for i in places]
        return places, readable, encode(readable) if readable else np.empty((0, 0), np.float32)


def _opens(row: Row) -> bool:
    try:
        open_picture(row[1], row[0])
    except DataError as error:
        warn(f"left out: {error}", UDRWarning, stacklevel=2)
        return False
    return True


def open_picture_encoder(address: str) -> Encoder:
    """Open an encoder that reads pictures; one that reads texts alone would give each the vector of no text.

    Raises:
        ConfigError: the encoder reads no pictures.
    """
    encoder = open_encoder(address)
    file = BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    picture = Query("picture", "", media=(Media("image", data=file.getvalue()),))
    try:
        encoder.encode_queries([picture])
        reads = not isinstance(encoder, BiEncoder)
    except DataError:  # of a model of sentence-transformers without pictures
        reads = False
    if not reads:
        raise ConfigError(f"--encoder {address}: reads no pictures")
    return encoder
