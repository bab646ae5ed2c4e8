"""Pictures of every kind become upright RGB, and what is none is refused in one line."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embed.media import MAX_BYTES, open_picture, pixels_of, read_data_uri
from udr.errors import DataError
from udr.types import Media


def encoded(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


def plain(colour: Any = (200, 30, 40), mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it has very many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (encoded(plain()), (200, 30, 40)),
        (encoded(plain(), "BMP"), (200, 30, 40)),
        (encoded(plain((0, 255, 255, 0), "CMYK"), "TIFF"), (255, 0, 0)),
        (encoded(plain((200, 30, 40, 0), "RGBA")), (255, 255, 255)),
        (encoded(plain((200, 30, 40, 255), "RGBA")), (200, 30, 40)),
        (encoded(plain(77, "L")), (77, 77, 77)),
        (encoded(plain(1, "1")), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((4, 6), 32768, np.uint16))), (127, 127, 127)),
        (encoded(plain(), "GIF", save_all=True, append_images=[plain((0, 0, 0))]), (200, 30, 40)),
        (encoded(plain(size=(1, 1))), (200, 30, 40)),
    ],
    ids=["png", "bmp", "cmyk", "clear", "opaque", "grey", "bits", "16 bits", "animated", "one pixel"],
)
def test_every_kind_of_picture_becomes_8_bit_rgb(raw: bytes, expected: tuple[int, int, int]) -> None:
    picture = open_picture(raw)
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture, int)[0, 0] - expected).max() <= 2


def test_a_picture_that_lies_on_its_side_is_put_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    assert open_picture(encoded(plain(size=(6, 4)), "JPEG", exif=exif)).size == (4, 6)


def test_what_is_no_picture_is_one_line_that_says_where_and_what(tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((64, 64), 50))
    for raw, words in (
        (b"", "empty"),
        (b"no picture at all", "no picture of a known format"),
        (whole[: len(whole) // 2], "damaged"),
        (bomb(30_000, 30_000), "far too many pixels"),
        (bomb(9_000, 9_000), "9000 x 9000 pixels"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture of a known format"),
        (bytes(MAX_BYTES + 1), "bytes, at most"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_picture(raw, "row 7")
        assert str(caught.value).startswith("row 7: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"nowhere\.png: cannot be read"):
        open_picture(tmp_path / "nowhere.png")


def test_media_carry_their_bytes_or_a_data_uri_and_addresses_are_not_fetched() -> None:
    raw = encoded(plain())
    uri = "data:image/png;base64," + base64.b64encode(raw).decode()
    assert read_data_uri(uri, "x") == raw
    assert read_data_uri("data:,a%20b", "x") == b"a b"
    for media in (Media("image", data=raw), Media("image", uri=uri)):
        assert open_picture(media).size == (6, 4)
    for uri, words in (("http://127.0.0.1/x.png", "not fetched"), ("file:///etc/passwd", "not fetched"),
                       ("data:image/png;base64,@@", "no base64")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            open_picture(Media("image", uri=uri))


def test_a_thin_picture_is_no_bomb() -> None:
    thin = open_picture(encoded(plain(size=(1, 2_000_000))))
    assert pixels_of(thin, 256).shape == (3, 256, 256)


@pytest.mark.parametrize("size", [(10, 4), (4, 10), (8, 8), (1, 1), (3, 300)])
def test_pixels_are_the_middle_square(size: tuple[int, int]) -> None:
    ramp = np.zeros((size[1], size[0], 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, size[0]).astype(np.uint8)
    pixels = pixels_of(Image.fromarray(ramp), 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    if size[0] >= size[1]:
        row = pixels[0, 4].astype(int)
        assert abs(row.mean() - ramp[0, :, 0].mean()) < 12  # the middle of the ramp is its mean
        assert (np.diff(row) >= 0).all()
