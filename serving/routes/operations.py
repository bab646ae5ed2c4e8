"""Is the service alive, is it ready, and what has it been doing."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.exceptions import HTTPException

from serving.catalog import BM25_NAME, HYBRID
from serving.dependencies import By, Service
from udr.errors import UDRError

__all__ = ["router"]

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Touches nothing: true while the process turns its event loop."""
    return {"status": "alive"}


@router.get("/readyz")
def readyz(parts: Service) -> JSONResponse:
    """True while the database answers and encodings go well; false for good once memory has run out."""
    checks = {"encoding": parts.worker.state, "database": "ok"}
    try:
        parts.database.ping()
    except UDRError as error:
        checks["database"] = str(error)
    ready = all(state == "ok" for state in checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", **checks}, 200 if ready else 503)


@router.get("/metrics")
async def metrics(caller: By) -> Response:
    """Prometheus's text format; with several worker processes, of all of them together. Not for keys of some pools."""
    if caller.pools is not None:
        raise HTTPException(403, f"key {caller.name!r} is for some pools alone; this tells of all")
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/retrievers")
def retrievers(parts: Service) -> dict[str, Any]:
    """The retrievers and tokenizers that this service was given."""
    return {"retrievers": [*parts.catalog.retrievers.names, BM25_NAME, HYBRID], "tokenizers": parts.tokenizers.names}
