"""The page at `/`, in files that a browser takes as they are; and a pool's map and statistics, which it asks for."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import orjson
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from serving.dependencies import AnyPool, Service
from serving.overview import lengths, outputs, principal_plane
from serving.sql.sample import sample, sample_encoded
from udr.errors import ConflictError

__all__ = ["router"]

router = APIRouter(tags=["playground"])
_SAMPLED = 2000  # demonstrations that a map or statistics are made of, at most
_TEXT = 300  # characters of a text on the map
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",  # no text becomes markup, whoever wrote the code that tries
    "trusted-types": "'none'",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # to browsers that do not know frame-ancestors
}


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]


@cache
def _page() -> dict[str, _File]:
    """Every file of the page by its name."""
    found = {}
    for file in (files("serving") / "playground").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.name] = _File(content, {**_HEADERS, "Content-Type": kind, "ETag": tag})
    return found


def _same(request: Request, tag: str) -> bool:
    """True where the caller holds what it asks for."""
    return tag in (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(","))


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def index(request: Request) -> Response:
    """The playground."""
    return await part("index.html", request)


@router.api_route("/playground/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def part(name: str, request: Request) -> Response:
    """A file of the playground."""
    file = _page().get(name)
    if file is None:
        raise HTTPException(404, f"the playground has no file {name!r}")
    if _same(request, file.headers["ETag"]):
        return Response(status_code=304, headers={k: v for k, v in file.headers.items() if k != "Content-Type"})
    return Response(file.content, headers=file.headers)


@router.get("/v1/pools/{name}/map")
def draw_map(pool: AnyPool, parts: Service, request: Request) -> Response:
    """Demonstrations as points: the two principal components of their vectors under the pool's own retriever.

    A large pool is sampled; `sampled` says how many points there are, of how many `demonstrations`.
    """
    encoding = next((e for e in parts.catalog.store.encodings(pool.row.id) if e.id == pool.row.active), None)
    if encoding is None:
        raise ConflictError(
            f"pool {pool.row.name!r} has no vectors; PUT /v1/pools/{pool.row.name}/retriever makes some"
        )
    tag = f'"{pool.row.id}-{pool.row.seq}-{encoding.id}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if _same(request, tag):
        return Response(status_code=304, headers=headers)
    found = sample_encoded(parts.database, pool.row.id, encoding.id, _SAMPLED)
    plane = principal_plane(found.vectors)
    points = [
        {"id": d.id, "x": round(x, 5), "y": round(y, 5), "input": d.input[:_TEXT], "output": d.output[:_TEXT]}
        for (_, d, _), (x, y) in zip(found.rows, plane.points.tolist(), strict=True)
    ]
    return _json(
        pool,
        {"retriever": encoding.retriever, "variance": plane.shares, "sampled": len(points), "points": points},
        headers,
    )


@router.get("/v1/pools/{name}/statistics")
def count_up(pool: AnyPool, parts: Service) -> Response:
    """Outputs and their counts, and lengths of texts in characters, of the same sample as the map's."""
    found = [s.demonstration for s in sample(parts.database, pool.row.id, _SAMPLED)]
    return _json(
        pool,
        {
            "sampled": len(found),
            "outputs": outputs([d.output for d in found]),
            "input_characters": lengths([d.input for d in found]),
            "output_characters": lengths([d.output for d in found]),
        },
        {},
    )


def _json(pool: AnyPool, more: dict[str, Any], headers: dict[str, str]) -> Response:
    known = {"pool": pool.row.name, "seq": pool.row.seq, "demonstrations": pool.row.size}
    return Response(orjson.dumps(known | more), media_type="application/json", headers=headers)
