"""Lists in pages: cursors say nothing to clients, and stay right while a list changes."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import Query

from udr.errors import ConfigError

__all__ = ["Cursor", "Limit", "next_page", "open_cursor", "open_number"]

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str, Query(max_length=1024, description="What the page before gave as `next`.")]


def next_page(last: str) -> dict[str, str | None]:
    """The cursor of the page behind the item `last`; "": this page is the last one."""
    return {"next": base64.urlsafe_b64encode(last.encode()).decode() if last else None}


def open_cursor(cursor: str) -> str:
    """The last item of the page before.

    Raises:
        ConfigError: nothing that `next_page` made.
    """
    try:
        found = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise ConfigError("cursor: not one that this list gave") from None
    if "\x00" in found:
        raise ConfigError("cursor: not one that this list gave")
    return found


def open_number(cursor: str) -> int:
    """The last item's number, of a list that goes by numbers; 0 before the first.

    Raises:
        ConfigError: nothing that `next_page` made of a number.
    """
    found = open_cursor(cursor) or "0"
    if not found.isdecimal() or len(found) > 18:
        raise ConfigError("cursor: not one that this list gave")
    return int(found)
