"""Pools and their demonstrations."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from serving.dependencies import AnyPool, Parts, Service, too_many
from serving.schemas import AddBody, DemonstrationBody, PoolBody, SwitchBody, demonstration_json
from udr.errors import ConfigError, DataError
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

__all__ = ["router"]

router = APIRouter(prefix="/v1/pools", tags=["pools"])
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str, Query(max_length=1024, description="What the page before gave as `next`.")]
DemonstrationKey = Annotated[str, Path(max_length=512)]


@router.post("", status_code=201)
def create_pool(body: PoolBody, parts: Service) -> dict[str, Any]:
    """Make an empty pool."""
    spec = TaskSpec.parse(body.spec(), "task")
    return parts.catalog.describe(parts.catalog.create(spec))


@router.get("")
def list_pools(parts: Service, cursor: Cursor = "", limit: Limit = 100) -> dict[str, Any]:
    """Pools by name."""
    rows = parts.catalog.store.pools(_open_cursor(cursor), limit)
    return {"pools": [{"name": r.name, "seq": r.seq, "created": r.created} for r in rows]} | _next(
        rows[-1].name if len(rows) == limit else ""
    )


@router.get("/{name}")
def describe_pool(pool: AnyPool, parts: Service) -> dict[str, Any]:
    """A pool, its task, and the retriever that answers."""
    return parts.catalog.describe(pool)


@router.delete("/{name}", status_code=204)
def delete_pool(pool: AnyPool, parts: Service) -> Response:
    """Forget a pool and all its demonstrations."""
    parts.catalog.delete(pool)
    return Response(status_code=204)


@router.put("/{name}/retriever", status_code=202)
def switch_retriever(pool: AnyPool, body: SwitchBody, parts: Service) -> dict[str, Any]:
    """Encode the pool under another retriever in the background; it answers once all is encoded."""
    return parts.catalog.switch(pool, body.retriever)


@router.post("/{name}/retriever/rollback")
def roll_back_retriever(pool: AnyPool, parts: Service) -> dict[str, Any]:
    """Let the retriever answer that did before the last switch."""
    return parts.catalog.describe(parts.catalog.roll_back(pool))


@router.post("/{name}/demonstrations", status_code=201)
def add_demonstrations(pool: AnyPool, body: AddBody, parts: Service) -> dict[str, Any]:
    """Store demonstrations, all or none; they are found by the next request."""
    demonstrations = _checked(body.demonstrations, parts)
    written = parts.catalog.write(pool, demonstrations, replace=body.mode == "upsert")
    return {**written._asdict(), "ids": [d.id for d in demonstrations]}


@router.get("/{name}/demonstrations")
def list_demonstrations(pool: AnyPool, parts: Service, cursor: Cursor = "", limit: Limit = 100) -> dict[str, Any]:
    """Demonstrations in the order they came."""
    after = _open_cursor(cursor) or "0"
    if not after.isdecimal() or len(after) > 18:
        raise ConfigError("cursor: not one that this list gave")
    page = parts.catalog.store.page(pool.row.id, int(after), limit)
    return {"demonstrations": [demonstration_json(s.demonstration) for s in page]} | _next(
        str(page[-1].row) if len(page) == limit else ""
    )


@router.get("/{name}/demonstrations/{key:path}")
def get_demonstration(pool: AnyPool, key: DemonstrationKey, parts: Service) -> dict[str, Any]:
    """One demonstration by its id."""
    return demonstration_json(parts.catalog.store.by_key(pool.row.id, key).demonstration)


@router.put("/{name}/demonstrations/{key:path}")
def put_demonstration(pool: AnyPool, key: DemonstrationKey, body: DemonstrationBody, parts: Service) -> dict[str, Any]:
    """Store one demonstration under this id, in the place of what stood there."""
    if body.id not in (None, key):
        raise ConfigError(f"id: the address says {key!r}, the body {body.id!r}")
    (demonstration,) = _checked([DemonstrationBody(**{**body.model_dump(), "id": key})], parts)
    parts.catalog.write(pool, [demonstration], replace=True)
    return demonstration_json(demonstration)


@router.delete("/{name}/demonstrations/{key:path}", status_code=204)
def delete_demonstration(pool: AnyPool, key: DemonstrationKey, parts: Service) -> Response:
    """Forget one demonstration."""
    parts.catalog.store.by_key(pool.row.id, key)  # raises where there is none
    parts.catalog.store.delete(pool.row.id, [key])
    return Response(status_code=204)


def _checked(bodies: Sequence[DemonstrationBody], parts: Parts) -> list[Demonstration]:
    """Demonstrations within the limits.

    Raises:
        DataError: a text is too long, or is not Unicode (names the place in the request).
    """
    too_many("demonstrations", len(bodies), parts.settings.max_items)
    found = []
    for i, body in enumerate(bodies):
        d = body.demonstration()
        for text in (d.input, d.output, *d.choices, *d.references, *d.metadata, *d.metadata.values()):
            check_text(text, f"demonstrations.{i}", parts.settings.max_text)
        found.append(d)
    return found


def check_text(text: str, where: str, limit: int) -> None:
    """Refuse what no store keeps and no encoder reads."""
    if len(text) > limit:
        raise DataError(f"{where}: a text of {len(text)} characters; the limit is {limit}")
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: a text holds NUL or half a surrogate pair")


def _next(last: str) -> dict[str, str | None]:
    return {"next": base64.urlsafe_b64encode(last.encode()).decode() if last else None}


def _open_cursor(cursor: str) -> str:
    try:
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise ConfigError("cursor: not one that this list gave") from None
