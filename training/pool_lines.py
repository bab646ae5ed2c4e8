"""Lines of NDJSON that the service loads into a pool, from rows of any table."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any
from warnings import warn

from PIL import Image

from embed.media import open_picture
from udr.errors import DataError, UDRWarning
from udr.types import LONGEST_ADDRESS, Media

__all__ = ["picture_entry", "pool_line"]

FIELDS = ("id", "input", "output", "choices", "references", "media", "metadata")
QUALITY = 90  # of a JPEG that takes the place of a picture that is too large


def picture_entry(picture: bytes, where: str) -> dict[str, str]:
    """A picture as an entry of `media`; one that pools do not take is made smaller, as JPEG.

    Raises:
        DataError: it is empty, or too large and cannot be read.
    """
    if not picture:
        raise DataError(f"{where}: empty")
    address = Media("image", data=picture).address
    if len(address) <= LONGEST_ADDRESS["image"]:
        return {"kind": "image", "uri": address}
    smaller = open_picture(picture, where)
    while len(address) > LONGEST_ADDRESS["image"]:
        file = io.BytesIO()
        smaller.save(file, "JPEG", quality=QUALITY)
        address = Media("image", data=file.getvalue()).address
        share = 0.95 * math.sqrt(LONGEST_ADDRESS["image"] / len(address))
        if share < 0.95:
            size = (max(1, int(share * smaller.width)), max(1, int(share * smaller.height)))
            smaller = smaller.resize(size, Image.Resampling.LANCZOS)
    return {"kind": "image", "uri": address}


def pool_line(row: Mapping[str, Any], where: str) -> bytes:
    """A row as a demonstration: other columns become metadata, as they do where a service loads Parquet.

    A column of lists or objects is no metadata and left out, with a warning.

    Raises:
        DataError: a value that JSON does not hold.
    """
    stated = dict(row.get("metadata") or {})
    left_out = []
    for key, value in row.items():
        if key in FIELDS or value is None or (key == "text" and row.get("input") is None):
            continue
        if isinstance(value, str | int | float):
            stated.setdefault(key, value)
        else:
            left_out.append(key)
    if left_out:
        warn(
            f"not in the pool: column {', '.join(left_out)} (metadata are texts and numbers)", UDRWarning, stacklevel=2
        )
    kept = {key: row[key] for key in FIELDS if row.get(key) is not None}
    known = {"input": row.get("text") or "", "output": ""} | kept | {"metadata": stated}
    try:
        return (json.dumps(known, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:  # objects that are none of JSON's, numbers that are none, half characters
        reason = str(error) if isinstance(error, TypeError) else "a number that is none, or half a character"
        raise DataError(f"{where}: a value that JSON does not hold ({reason})") from None
