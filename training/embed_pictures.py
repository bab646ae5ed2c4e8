"""Vectors of many pictures, in memory that does not grow with them: `udr embed`."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from warnings import warn

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from embed.media import open_picture, picture_bytes
from embed.registry import open_encoder
from training.pictures import Row, batches, picture_rows
from udr.artifacts import replacing
from udr.encoder import BiEncoder
from udr.errors import ConfigError, DataError, UDRWarning
from udr.types import Encoder, FloatArray, Media, Progress, Query

__all__ = ["embed_pictures", "vector_schema"]

AT_ONCE = 256  # pictures of a row group


def embed_pictures(
    source: Path, address: str, out: Path, split: str | None = None, progress: Progress | None = None
) -> tuple[int, int]:
    """Write name, label and vector of each picture, and a warning for each that cannot be read; give both numbers.

    Raises:
        DataError: no such source, or nothing in it can be read.
        ConfigError: the encoder reads no pictures.
    """
    encoder = open_encoder(address)
    _check_reads_pictures(encoder, address)
    schema = vector_schema(encoder, address)
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


def vector_schema(encoder: Encoder, address: str) -> pa.Schema:
    """Of a table of names, labels and vectors; it knows the encoder."""
    fields = [("name", pa.string()), ("label", pa.string()), ("vector", pa.list_(pa.float32(), encoder.dim))]
    return pa.schema(fields, metadata={"encoder": address, "fingerprint": encoder.fingerprint})


def _query(row: Row) -> Query:
    name, picture, _ = row
    return Query(name, "", media=(Media("image", data=picture_bytes(picture, name)),))


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
    except DataError as error:
        warn(f"left out: {error}", UDRWarning, stacklevel=2)
        return False
    return True


def _check_reads_pictures(encoder: Encoder, address: str) -> None:
    """One that reads texts alone would give every picture the vector of no text."""
    file = BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    picture = Query("picture", "", media=(Media("image", data=file.getvalue()),))
    try:
        encoder.encode_queries([picture])
        reads = not isinstance(encoder, BiEncoder)
    except ValueError:  # of a model of sentence-transformers without pictures
        reads = False
    if not reads:
        raise ConfigError(f"--encoder {address}: reads texts and no pictures")
