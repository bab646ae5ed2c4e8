"""Vectors of many pictures, in memory that does not grow with them: `udr embed`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embed.media import open_picture
from embed.registry import open_encoder
from training.pictures import Row, batches, picture_rows
from udr.artifacts import replacing
from udr.errors import DataError
from udr.types import Encoder, FloatArray, Media, Progress, Query

__all__ = ["embed_pictures"]

AT_ONCE = 256  # pictures of a row group


def embed_pictures(
    source: Path, address: str, out: Path, split: str | None = None, progress: Progress | None = None
) -> tuple[int, int]:
    """Write name, label, vector and what is wrong with each picture; give how many were encoded, and how many not.

    Raises:
        DataError: no such source, or nothing in it can be read.
    """
    encoder = open_encoder(address)
    fields = [("name", pa.string()), ("label", pa.string()), ("vector", pa.list_(pa.float32(), encoder.dim))]
    schema = pa.schema(fields, metadata={"encoder": address, "fingerprint": encoder.fingerprint})
    done = unread = 0
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for rows in batches(picture_rows(source, split), AT_ONCE):
            readable, vectors = _encoded(encoder, rows)
            unread += len(rows) - len(readable)
            if readable:
                columns = [[r[0] for r in readable], [r[2] for r in readable], list(vectors)]
                writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
            done += len(readable)
            if progress:
                progress(done + unread, 0)
        if not done:
            raise DataError(f"{source}: none of {unread} pictures can be read")
    return done, unread


def _query(row: Row) -> Query:
    name, picture, _ = row
    return Query(
        name, "", media=(Media("image", data=picture if isinstance(picture, bytes) else picture.read_bytes()),)
    )


def _encoded(encoder: Encoder, rows: list[Row]) -> tuple[list[Row], FloatArray]:
    """Those of the rows that are pictures, and their vectors."""
    try:
        return rows, encoder.encode_queries([_query(row) for row in rows])
    except DataError:
        readable = [row for row in rows if _opens(row)]
        return readable, encoder.encode_queries([_query(row) for row in readable])


def _opens(row: Row) -> bool:
    try:
        open_picture(row[1], row[0])
    except DataError:
        return False
    return True
