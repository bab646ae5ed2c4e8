"""Pictures with written and spoken captions: one Parquet table, and what training draws from it.

A row is one thing: `id`, `image` (bytes of a picture), `captions` (a list of {language, text}), `sounds` (a list of
{language, voice, sound}, the bytes of a spoken caption), and, where known, `label` and `split`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.pictures import batches
from udr.artifacts import replacing
from udr.errors import DataError

__all__ = ["SCHEMA", "Captioned", "Sound", "read_captioned", "write_captioned"]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("captions", pa.list_(pa.struct([("language", pa.string()), ("text", pa.string())]))),
        (
            "sounds",
            pa.list_(pa.struct([("language", pa.string()), ("voice", pa.string()), ("sound", pa.binary())])),
        ),
        ("label", pa.string()),
        ("split", pa.string()),
    ]
)
AT_ONCE = 64  # rows of a row group
NEEDED = ("id", "image", "captions")


@dataclass(frozen=True, slots=True)
class Sound:
    """A spoken caption; `voice` says who speaks: `human`, or the voice of a speech synthesiser."""

    language: str
    voice: str
    sound: bytes


@dataclass(frozen=True, slots=True)
class Captioned:
    """One thing as picture, words and speech."""

    id: str
    image: bytes
    captions: tuple[tuple[str, str], ...]  # (language, text)
    sounds: tuple[Sound, ...] = ()
    label: str = ""
    split: str = "train"

    def texts(self, languages: Iterable[str] = ()) -> list[str]:
        """Captions in some languages, or in all, without the empty ones."""
        wanted = set(languages)
        return [text for language, text in self.captions if text.strip() and (not wanted or language in wanted)]


def write_captioned(out: Path, rows: Iterable[Captioned]) -> int:
    """Write a table, whole or not at all; give its rows."""
    count = 0
    with replacing(out) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for batch in batches(rows, AT_ONCE):
            writer.write_table(pa.Table.from_pylist([_as_dict(row) for row in batch], schema=SCHEMA))
            count += len(batch)
    return count


def _as_dict(row: Captioned) -> dict[str, Any]:
    return {
        "id": row.id,
        "image": row.image,
        "captions": [{"language": language, "text": text} for language, text in row.captions],
        "sounds": [{"language": s.language, "voice": s.voice, "sound": s.sound} for s in row.sounds],
        "label": row.label,
        "split": row.split,
    }


def read_captioned(source: Path, split: str | None = None) -> list[Captioned]:
    """Read a table.

    Raises:
        DataError: no such table, a column that is missing or of another form, an id that stands twice, or no rows.
    """
    if source.suffix != ".parquet" or not source.is_file():
        raise DataError(f"{source}: expected a .parquet with columns {', '.join(SCHEMA.names)}")
    try:
        with pq.ParquetFile(source) as table:
            known = table.schema_arrow.names
            for column in (*NEEDED, *(["split"] if split is not None else [])):
                if column not in known:
                    raise DataError(f"{source}: no column {column!r}; it has {', '.join(known)}")
            columns = [name for name in SCHEMA.names if name in known]
            parts = table.iter_batches(batch_size=AT_ONCE, columns=columns)
            rows = [row for batch in parts for row in batch.to_pylist()]
    except pa.ArrowException as error:
        raise DataError(f"{source}: not Parquet ({str(error).splitlines()[0]})") from None
    found = [_row(row, f"{source}:{number}") for number, row in enumerate(rows, 1)]
    seen: set[str] = set()
    for number, one in enumerate(found, 1):
        if one.id in seen:
            raise DataError(f"{source}:{number}: id {one.id!r} stands twice")
        seen.add(one.id)
    chosen = [one for one in found if split is None or one.split == split]
    if not chosen:
        raise DataError(f"{source}: no rows{f' of split {split}' if split is not None else ''}")
    return chosen


def _row(row: dict[str, Any], where: str) -> Captioned:
    try:
        image = row["image"]
        return Captioned(
            str(row["id"]),
            image["bytes"] if isinstance(image, dict) else bytes(image),  # the hub's form, or bytes
            tuple((str(c["language"]), str(c["text"])) for c in row["captions"] or ()),
            tuple(Sound(str(s["language"]), str(s["voice"]), bytes(s["sound"])) for s in row.get("sounds") or ()),
            str(row.get("label") or ""),
            str(row.get("split") or "train"),
        )
    except (TypeError, KeyError, ValueError):
        raise DataError(
            f"{where}: expected image (bytes), captions (language, text) and sounds (language, voice, sound)"
        ) from None
