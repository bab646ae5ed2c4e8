"""What routes are handed: the parts of the service, and the right to use it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from serving.batching import EncodingWorker
from serving.catalog import Catalog, Pool
from serving.settings import Settings
from serving.tokenizers import Tokenizers

__all__ = ["AnyPool", "Parts", "Service", "authorised"]


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the service is made of."""

    settings: Settings
    catalog: Catalog
    worker: EncodingWorker
    tokenizers: Tokenizers


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


Service = Annotated[Parts, Depends(_parts)]


def _pool(name: str, parts: Service) -> Pool:
    return parts.catalog.pool(name)


AnyPool = Annotated[Pool, Depends(_pool)]


def authorised(key: str, authorization: str | None) -> bool:
    """True if the header holds the key, compared in constant time; any caller is where there is no key."""
    if not key:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), key.encode())


def too_many(what: str, n: int, limit: int) -> None:
    """Refuse a request of more than `limit` items."""
    if n > limit:
        raise HTTPException(413, f"{n} {what} in one request; the limit is {limit}")
