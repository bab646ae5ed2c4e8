"""Keys, and the log of changes."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from serving.dependencies import Service, needs
from serving.routes.paging import Cursor, Limit, next_page, open_cursor
from serving.schemas import KeyBody
from serving.sql.keys import KeyRow
from udr.errors import ConfigError

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["administration"], dependencies=[Depends(needs("admin"))])


@router.post("/keys", status_code=201)
def create_key(body: KeyBody, parts: Service) -> dict[str, Any]:
    """Make a key; its secret is shown this once."""
    if body.role == "admin" and body.pools is not None:
        raise ConfigError("pools: an administrator's key is for all of them; take the role write")
    expires = None if body.days is None else time.time() + 86_400 * body.days
    row, secret = parts.keys.create(body.name, body.role, body.pools, expires)
    return {**_key_json(row), "key": secret}


@router.get("/keys")
def list_keys(parts: Service) -> dict[str, Any]:
    """All keys, without their secrets."""
    return {"keys": [_key_json(row) for row in parts.keys.all()]}


@router.delete("/keys/{name}", status_code=204)
def delete_key(name: str, parts: Service) -> Response:
    """Revoke a key; processes that have just seen it believe it for up to five seconds."""
    parts.keys.delete(name)
    return Response(status_code=204)


@router.get("/audit")
def read_audit(
    parts: Service, cursor: Cursor = "", limit: Limit = 100, pool: Annotated[str, Query(max_length=128)] = ""
) -> dict[str, Any]:
    """Who changed what, the newest first."""
    before = open_cursor(cursor) or "0"
    if not before.isdecimal() or len(before) > 18:
        raise ConfigError("cursor: not one that this list gave")
    rows = parts.audit.page(int(before), limit, pool)
    return {"changes": [row._asdict() for row in rows]} | next_page(str(rows[-1].id) if len(rows) == limit else "")


def _key_json(row: KeyRow) -> dict[str, Any]:
    return {"name": row.name, "role": row.role, "pools": row.pools, "expires": row.expires, "created": row.created}
