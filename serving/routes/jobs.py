"""Loads of many demonstrations, and the jobs that work on pools."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request
from starlette.exceptions import HTTPException

from serving.catalog import Pool
from serving.dependencies import AnyPool, By, Parts, Service, needs, visible
from serving.idempotency import key_of
from serving.loading import Format
from serving.schemas import job_json
from serving.sql.jobs import JobRow

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["jobs"])
_FORMATS: dict[str, Format] = {
    "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/vnd.apache.parquet": "parquet",
}
_PART = 1 << 20  # bytes of the payload stored at a time
_PAYLOAD = {"requestBody": {"required": True, "content": {k: {"schema": {"type": "string"}} for k in _FORMATS}}}


@router.post("/pools/{name}/load", status_code=202, dependencies=[Depends(needs("write"))], openapi_extra=_PAYLOAD)
async def load(
    request: Request,
    pool: AnyPool,
    parts: Service,
    mode: Annotated[Literal["add", "upsert"], Query(description="upsert: replace what an id stood for.")] = "add",
) -> dict[str, Any]:
    """Store many demonstrations in the background: NDJSON lines or Parquet rows with the fields of a demonstration.

    What is answered is on disk. Lines that cannot be used are told with their number; the others are stored. One
    Idempotency-Key loads one payload once.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _FORMATS:
        raise HTTPException(415, f"content-type {kind!r}: expected one of {', '.join(_FORMATS)}")
    key = key_of(request.scope)
    spec = {"format": _FORMATS[kind], "mode": mode}
    job = await run_sync(lambda: parts.jobs.create(pool.row.id, "load", spec, state="receiving"))
    digest, number, size, waiting = hashlib.sha256(repr(spec).encode()), 0, 0, bytearray()
    async for chunk in request.stream():
        digest.update(chunk)
        size += len(chunk)
        waiting += chunk
        if len(waiting) >= _PART:
            await run_sync(parts.jobs.add_part, job.id, number, bytes(waiting))
            number, waiting = number + 1, bytearray()
    if waiting:
        await run_sync(parts.jobs.add_part, job.id, number, bytes(waiting))
    begun = await run_sync(parts.jobs.received, job.id, size, key, digest.hexdigest())
    parts.background.wake()
    return job_json(begun)


@router.get("/pools/{name}/jobs")
def list_jobs(pool: AnyPool, parts: Service) -> dict[str, Any]:
    """The last hundred jobs of a pool, the newest first."""
    return {"jobs": [job_json(job) for job in parts.jobs.of_pool(pool.row.id)]}


@router.get("/jobs/{job}")
def get_job(job: str, parts: Service, caller: By) -> dict[str, Any]:
    """How far a job is, and the lines that it refused."""
    return job_json(_visible_job(job, parts, caller)[0])


@router.delete("/jobs/{job}", dependencies=[Depends(needs("write"))])
def cancel_job(job: str, parts: Service, caller: By) -> dict[str, Any]:
    """Stop a job; what it has stored stays."""
    return job_json(parts.jobs.cancel(_visible_job(job, parts, caller)[0].id))


def _visible_job(job: str, parts: Parts, caller: By) -> tuple[JobRow, Pool]:
    row = parts.jobs.get(job)
    pool = parts.catalog.pool_of(row.pool_id)
    visible(caller, pool.row.name)
    return row, pool
