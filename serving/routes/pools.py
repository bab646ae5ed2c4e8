"""Pools and their demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

from serving.catalog import Pool
from serving.dependencies import AnyPool, By, Parts, Service, needs, too_many
from serving.loading import check_demonstration
from serving.routes.paging import Cursor, Limit, next_page, open_cursor, open_number
from serving.schemas import (
    AddBody,
    DemonstrationBody,
    FrontBody,
    Id,
    PoolBody,
    SwitchBody,
    demonstration_json,
    job_json,
)
from serving.sql.matching import check_match, demonstration_tag, pool_tag, while_demonstration, while_pool
from udr.errors import ConfigError, NotFoundError, UnknownNameError
from udr.filters import parse_filter
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

__all__ = ["router"]

router = APIRouter(prefix="/v1/pools", tags=["pools"])
DemonstrationKey = Annotated[Id, Path()]
IfMatch = Annotated[
    str | None, Header(description="The ETag that was read: the change is refused (412) where it is another one now.")
]
_WRITES, _RULES = [Depends(needs("write"))], [Depends(needs("admin"))]


@router.post("", status_code=201, dependencies=_RULES)
def create_pool(body: PoolBody, parts: Service, response: Response) -> dict[str, Any]:
    """Make an empty pool."""
    spec = TaskSpec.parse(body.spec(), "task")
    return describe_pool(parts.catalog.create(spec, body.front.checked() if body.front else None), parts, response)


@router.get("")
def list_pools(parts: Service, caller: By, cursor: Cursor = "", limit: Limit = 100) -> dict[str, Any]:
    """Pools by name."""
    rows = parts.catalog.store.pools(open_cursor(cursor), limit, caller.pools)
    found = [{"name": r.name, "demonstrations": r.size, "seq": r.seq, "created": r.created} for r in rows]
    return {"pools": found} | next_page(rows[-1].name if len(rows) == limit else "")


@router.get("/{name}")
def describe_pool(pool: AnyPool, parts: Service, response: Response) -> dict[str, Any]:
    """A pool, its task, the retriever that answers, and the last switch to another one.

    Its ETag is another one after every write, switch, roll-back, and change of its front.
    """
    _tag(response, pool_tag(pool.row))
    switches = parts.jobs.of_pool(pool.row.id, "switch", 1)
    return parts.catalog.describe(pool) | {"switch": job_json(switches[0]) if switches else None}


@router.delete("/{name}", status_code=204, dependencies=_RULES)
def delete_pool(pool: AnyPool, parts: Service, if_match: IfMatch = None) -> Response:
    """Forget a pool and all its demonstrations."""
    parts.catalog.delete(pool, while_pool(pool.row.id, if_match))
    return Response(status_code=204)


@router.put("/{name}/front", dependencies=_RULES)
def set_front(
    pool: AnyPool, body: FrontBody, parts: Service, response: Response, if_match: IfMatch = None
) -> dict[str, Any]:
    """Say how requests that go through to the LLM server get this pool's demonstrations."""
    parts.catalog.store.set_front(pool.row.id, body.checked(), while_pool(pool.row.id, if_match))
    return describe_pool(parts.catalog.pool_of(pool.row.id), parts, response)


@router.put("/{name}/retriever", status_code=202, dependencies=_WRITES)
def switch_retriever(pool: AnyPool, body: SwitchBody, parts: Service, if_match: IfMatch = None) -> dict[str, Any]:
    """Encode the pool under another retriever in the background; it answers once all is encoded."""
    if if_match is not None:
        check_match(if_match, pool_tag(pool.row), "the pool")
    if body.retriever not in parts.catalog.retrievers.names:
        raise UnknownNameError("retriever", body.retriever, parts.catalog.retrievers.names)
    job = parts.jobs.create(pool.row.id, "switch", {"retriever": body.retriever}, total=pool.row.size, alone=True)
    parts.background.wake()
    return job_json(job)


@router.post("/{name}/retriever/rollback", dependencies=_WRITES)
def roll_back_retriever(pool: AnyPool, parts: Service, response: Response) -> dict[str, Any]:
    """Let the retriever answer that did before the last switch."""
    return describe_pool(parts.catalog.roll_back(pool), parts, response)


@router.post("/{name}/demonstrations", status_code=201, dependencies=_WRITES)
def add_demonstrations(pool: AnyPool, body: AddBody, parts: Service) -> dict[str, Any]:
    """Store demonstrations, all or none; they are found by the next request."""
    demonstrations = _checked(body.demonstrations, parts)
    written = parts.catalog.write(pool, demonstrations, "replace" if body.mode == "upsert" else "refuse")
    return {**written._asdict(), "ids": [d.id for d in demonstrations]} | _cut(parts, pool, demonstrations)


@router.get("/{name}/demonstrations")
def list_demonstrations(
    pool: AnyPool,
    parts: Service,
    cursor: Cursor = "",
    limit: Limit = 100,
    where: Annotated[str, Query(max_length=10_000, description="Conditions on the metadata, as JSON.")] = "",
) -> dict[str, Any]:
    """Demonstrations in the order they came."""
    conditions = parse_filter(_json_object(where)) if where else ()
    page, behind = parts.catalog.page(pool, open_number(cursor), limit, conditions)
    return {"demonstrations": [demonstration_json(d) for d in page]} | next_page(str(behind) if behind else "")


@router.get("/{name}/export", response_class=StreamingResponse)
def export(pool: AnyPool, parts: Service) -> StreamingResponse:
    """All demonstrations as NDJSON, in the order they came; `load` takes them back."""

    def lines() -> Iterator[bytes]:
        after = 0
        while page := parts.catalog.store.page(pool.row.id, after):
            yield b"".join(orjson.dumps(demonstration_json(s.demonstration)) + b"\n" for s in page)
            after = page[-1].row

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/{name}/demonstrations/{key:path}")
def get_demonstration(pool: AnyPool, key: DemonstrationKey, parts: Service, response: Response) -> dict[str, Any]:
    """One demonstration by its id."""
    found = parts.catalog.store.by_key(pool.row.id, key).demonstration
    _tag(response, demonstration_tag(found))
    return demonstration_json(found)


@router.put("/{name}/demonstrations/{key:path}", dependencies=_WRITES)
def put_demonstration(
    pool: AnyPool, key: DemonstrationKey, body: DemonstrationBody, parts: Service, if_match: IfMatch = None
) -> dict[str, Any]:
    """Store one demonstration under this id, in the place of what stood there."""
    if body.id not in (None, key):
        raise ConfigError(f"id: the address says {key!r}, the body {body.id!r}")
    (demonstration,) = _checked([DemonstrationBody(**{**body.model_dump(), "id": key})], parts)
    parts.catalog.write(pool, [demonstration], "replace", while_demonstration(pool.row.id, key, if_match))
    return demonstration_json(demonstration) | _cut(parts, pool, [demonstration])


@router.delete("/{name}/demonstrations/{key:path}", status_code=204, dependencies=_WRITES)
def delete_demonstration(pool: AnyPool, key: DemonstrationKey, parts: Service, if_match: IfMatch = None) -> Response:
    """Forget one demonstration."""
    if not parts.catalog.store.delete(pool.row.id, [key], while_demonstration(pool.row.id, key, if_match)):
        raise NotFoundError(f"no demonstration {key!r} in this pool")
    return Response(status_code=204)


def _tag(response: Response, tag: str) -> None:
    response.headers["ETag"] = tag
    response.headers["Cache-Control"] = "private, no-cache"


def _checked(bodies: Sequence[DemonstrationBody], parts: Parts) -> list[Demonstration]:
    """Demonstrations within the limits.

    Raises:
        DataError: a text is too long (names the place in the request).
    """
    too_many("demonstrations", len(bodies), parts.settings.max_items)
    found = [body.demonstration() for body in bodies]
    for i, d in enumerate(found):
        check_demonstration(d, f"demonstrations.{i}", parts.settings.max_text)
    return found


def _cut(parts: Parts, pool: Pool, demonstrations: Sequence[Demonstration]) -> dict[str, Any]:
    """Which of them the encoder did not read to their end, and how many tokens of each it left out."""
    encoding = parts.catalog.rank_by(pool, "").encoding
    if encoding is None:
        return {}
    cut = encoding.encoder.tokens_cut(demonstrations)
    found = {d.id: n for d, n in zip(demonstrations, cut, strict=True) if n}
    return {"tokens_cut": found} if found else {}


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"where: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError("where: expected an object of conditions")
    return found
