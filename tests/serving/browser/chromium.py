"""A headless Chromium for tests: the machine's own, as Debian's package `chromium` installs it."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium", "executable", "picture", "png"]


def executable() -> str | None:
    """Where Chromium is; None: it is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running one; the administrator's processes get no sandbox of Chromium's."""
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=args)
        try:
            yield browser
        finally:
            browser.close()


def png(width: int, height: int, level: int = -1) -> bytes:
    """A picture of many colours; of level 0 it takes as many bytes as it has."""
    lines = b"".join(
        b"\0" + bytes(v for x in range(width) for v in ((x * 7) % 256, (y * 5) % 256, (x * y) % 256))
        for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, level)) + chunk(b"IEND", b"")
    )


def picture(width: int = 24, height: int = 16) -> str:
    """The same as a data-URI."""
    return "data:image/png;base64," + base64.b64encode(png(width, height)).decode()
