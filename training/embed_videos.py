"""Vectors of many videos, one at a time: `udr embed` with a video encoder."""

from __future__ import annotations

from pathlib import Path
from warnings import warn

import pyarrow as pa
import pyarrow.parquet as pq

from embed.registry import open_encoder
from embed.video import VideoEncoder
from training.clips import VIDEO_ENDINGS, split_folder
from training.embed_pictures import vector_schema
from training.pictures import folder_rows
from udr.artifacts import replacing
from udr.errors import ConfigError, DataError, UDRWarning
from udr.types import Progress

__all__ = ["embed_videos"]


def embed_videos(
    source: Path, address: str, out: Path, split: str | None = None, progress: Progress | None = None
) -> tuple[int, int]:
    """Write name, label and vector of each video, and a warning for each that cannot be read; give both numbers.

    `source` is one video, or a folder of them; `split` one of its subfolders.

    Raises:
        DataError: no such source, or nothing in it can be read.
        ConfigError: the encoder reads no videos.
    """
    encoder = open_encoder(address)
    if not isinstance(encoder, VideoEncoder):
        raise ConfigError(f"--encoder {address}: reads no videos")
    if source.is_file():
        rows: list[tuple[str, Path, str | None]] = [(source.name, source, None)]
    else:
        rows = list(folder_rows(split_folder(source, split), VIDEO_ENDINGS))
    done, schema = 0, vector_schema(encoder, address)
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for number, (name, path, label) in enumerate(rows, 1):
            try:
                columns = [[name], [label], [encoder.encode_video(path, name)]]
                writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
                done += 1
            except DataError as error:
                warn(f"left out: {error}", UDRWarning, stacklevel=2)
            if progress:
                progress(number, len(rows))
        if not done:
            raise DataError(f"{source}: none of {len(rows)} videos can be read")
    return done, len(rows) - done
