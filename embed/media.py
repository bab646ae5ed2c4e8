"""Open pictures, from wherever they come, within limits; one line says what is wrong with one that cannot be."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from udr.errors import DataError
from udr.types import Media, Query

__all__ = ["MAX_BYTES", "MAX_PIXELS", "media_of", "open_picture", "picture_bytes", "pixels_of", "read_data_uri"]

MAX_PIXELS = 50_000_000  # of one picture; a decompression bomb has more in few bytes
MAX_BYTES = 50_000_000  # of one file
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # those whose readers are well kept


def read_data_uri(uri: str, where: str) -> bytes:
    """The bytes of a data-URI (RFC 2397).

    Raises:
        DataError: it is another address, or damaged.
    """
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().startswith("data:"):
        raise DataError(f"{where}: {uri[:40]!r} is no data-URI; addresses are not fetched, send the bytes themselves")
    try:
        raw = unquote_to_bytes(body)
        return base64.b64decode(raw, validate=True) if head.lower().endswith(";base64") else raw
    except (binascii.Error, ValueError):
        raise DataError(f"{where}: the data-URI is no base64") from None


def media_of(query: Query, kind: Literal["image", "video"]) -> Media:
    """The first picture or video that a query shows.

    Raises:
        DataError: it shows none.
    """
    for media in query.media:
        if media.kind == kind:
            return media
    word, article = ("picture", "an image") if kind == "image" else ("video", "a video")
    raise DataError(f"{query.id}: no {word}; {article} encoder reads queries with media of kind {kind}")


def open_picture(source: Path | bytes | Media, where: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB, upright; `where` is how messages name it.

    Of an animation the first frame is taken; transparency is laid on white; 16-bit and CMYK pictures become 8-bit RGB.

    Raises:
        DataError: no picture, a damaged one, or one of more than `max_pixels`.
    """
    where = where or (str(source) if isinstance(source, Path) else "picture")
    raw = picture_bytes(source, where)
    if not raw:
        raise DataError(f"{where}: empty")
    if len(raw) > MAX_BYTES:
        raise DataError(f"{where}: {len(raw)} bytes, at most {MAX_BYTES} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit is ours, and odd metadata is no reason to refuse
            with Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
                if opened.width * opened.height > max_pixels:
                    raise DataError(f"{where}: {opened.width} x {opened.height} pixels, at most {max_pixels} are read")
                return _as_rgb(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError:  # Pillow's own limit is met before ours can be
        raise DataError(f"{where}: a picture of far too many pixels, at most {max_pixels} are read") from None
    except UnidentifiedImageError:
        raise DataError(f"{where}: no picture of a known format ({', '.join(FORMATS)})") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        raise DataError(
            f"{where}: a damaged picture ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None


def picture_bytes(source: Path | bytes | Media, where: str) -> bytes:
    """The bytes of a picture, of a file at most one more than `MAX_BYTES`.

    Raises:
        DataError: a file that cannot be read, or an address.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Media):
        return source.data or read_data_uri(source.uri, where)
    try:
        with source.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that holds what no path can
        raise DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # Pillow would clip 16 bits at 255
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode.startswith("I") else max(1.0, float(np.nanmax(values, initial=0)))
        return Image.fromarray((np.clip(np.nan_to_num(values) / top, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        ground = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(ground, with_alpha).convert("RGB")
    return picture.convert("RGB")


def pixels_of(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """The middle square of a picture, scaled to `size` pixels (bicubic, with antialiasing).

    Shape: (3, size, size), uint8.
    """
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    if picture.size != (size, size):  # in one step: scaling a thin picture as a whole would make a huge one
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture).transpose(2, 0, 1)
