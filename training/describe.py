"""Attributes that a multi-task encoder sees, as metadata that pools are filtered by: `udr describe`.

What is written is NDJSON as pools load it, one demonstration a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

from embed.media import open_picture, picture_bytes
from embed.multi_task import Attribute, MultiTaskEncoder
from embed.registry import open_encoder
from training.pictures import batches, most_pictures, of_split, picture_rows
from training.pool_lines import picture_entry, pool_line
from udr.artifacts import replacing
from udr.errors import ConfigError, DataError, UDRWarning
from udr.types import Media, Progress, Query

__all__ = ["describe_pictures", "open_describing"]

AT_ONCE = 32  # demonstrations in one forward pass
LINES = (".jsonl", ".ndjson")


def open_describing(address: str) -> MultiTaskEncoder:
    """Open an encoder that sees attributes.

    Raises:
        ConfigError: it is another one, or was trained without attributes.
    """
    encoder = open_encoder(address)
    if not isinstance(encoder, MultiTaskEncoder) or not encoder.classes:
        raise ConfigError(
            f"--encoder {address}: sees no attributes; train one by method multi_task with multi_task.attributes"
        )
    return encoder


def describe_pictures(
    source: Path,
    address: str,
    out: Path,
    split: str | None = None,
    least: float = 0.0,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write demonstrations with their pictures' attributes among their metadata; give those, and the others' number.

    Demonstrations of NDJSON stay without a picture that can be read; of a folder or table they are left out.

    Args:
        source: NDJSON of demonstrations, or a folder or Parquet table of pictures, whose labels become outputs.
        address: of a multi-task encoder.
        out: what pools load (.jsonl or .ndjson).
        split: of a table.
        least: an attribute of a lower probability is left out.
        progress: told how many are done.

    Raises:
        DataError: no such source, a line that is no demonstration, or nothing that has a picture.
        ConfigError: the encoder sees no attributes, or another ending of `out`.
    """
    if out.suffix not in LINES:
        raise ConfigError(f"{out}: pools load {' and '.join(LINES)}")
    encoder = open_describing(address)
    rows = _lines(source) if source.suffix in LINES else _pictures(source, split)
    most = 0 if source.suffix in LINES else most_pictures(source)
    described = others = 0
    with replacing(out) as temporary, temporary.open("wb") as file:
        for group in batches(rows, AT_ONCE):
            for row, told in zip(group, _described(encoder, group), strict=True):
                # a picture alone that cannot be read is no demonstration
                if told is not None or source.suffix in LINES:
                    found = {name: one.value for name, one in (told or {}).items() if one.probability >= least}
                    row["metadata"] = {**(row.get("metadata") or {}), **found}
                    file.write(pool_line(row, str(row.get("id") or source)))
                described, others = described + (told is not None), others + (told is None)
            if progress:
                progress(described + others, most)
        if not described:
            why = f"none of {others} demonstrations has a picture that can be read" if others else "no rows"
            raise DataError(f"{source}: {why}{of_split(split)}")
    return described, others


def _lines(source: Path) -> Iterator[dict[str, Any]]:
    from udr.data import read_rows

    for number, row in read_rows(source):
        if not isinstance(row.get("media") or [], list) or not isinstance(row.get("metadata") or {}, dict):
            raise DataError(f"{source}:{number}: `media` must be a list and `metadata` an object")
        yield row


def _pictures(source: Path, split: str | None) -> Iterator[dict[str, Any]]:
    for name, picture, label in picture_rows(source, split):
        try:
            media = [picture_entry(picture_bytes(picture, name), name)]
        except DataError as error:
            warn(f"not described: {error}", UDRWarning, stacklevel=2)
            media = []
        yield {"id": name, "input": "", "output": label or "", "media": media}


def _described(encoder: MultiTaskEncoder, rows: Sequence[dict[str, Any]]) -> list[dict[str, Attribute] | None]:
    """Attributes of those that have a picture, by their first one; None of the others."""
    queries = [_query(row) for row in rows]
    there = [i for i, query in enumerate(queries) if query is not None and _opens(query)]
    found: list[dict[str, Attribute] | None] = [None] * len(rows)
    asked = [query for i in there if (query := queries[i]) is not None]
    for i, told in zip(there, encoder.encode_described(asked)[1] if asked else (), strict=True):
        found[i] = told
    return found


def _query(row: dict[str, Any]) -> Query | None:
    for media in row.get("media") or ():
        if isinstance(media, dict) and media.get("kind") == "image":
            return Query(str(row.get("id") or "picture"), "", media=(Media("image", str(media.get("uri", ""))),))
    return None


def _opens(query: Query) -> bool:
    try:
        open_picture(query.media[0], query.id)
    except DataError as error:
        warn(f"not described: {error}", UDRWarning, stacklevel=2)
        return False
    return True
