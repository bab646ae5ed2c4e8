"""What came of prompts: recorded, reviewed, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import StreamingResponse

from serving.dependencies import AnyPool, By, Service, needs, too_many, visible
from serving.loading import check_demonstration, check_text
from serving.routes.paging import Cursor, Limit, next_page, open_number
from serving.schemas import FeedbackBody, ReviewBody, demonstration_json, feedback_json
from serving.sql.feedback import review
from udr.errors import ConflictError
from udr.outcomes import State

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["feedback"])
_PAGE = 1000  # outcomes of an export that are read at a time
_WRITES = [Depends(needs("write"))]
Number = Annotated[int, Path(ge=1, le=2**53)]


@router.post("/feedback", status_code=201, dependencies=_WRITES)
async def add_feedback(body: FeedbackBody, parts: Service, caller: By) -> dict[str, Any]:
    """Record what came of prompts; corrected outputs wait for a reviewer."""
    too_many("outcomes", len(body.outcomes), parts.settings.max_items)
    outcomes = [o.outcome(f"outcomes.{i}") for i, o in enumerate(body.outcomes)]
    for i, o in enumerate(outcomes):
        for text in (o.input, o.output or "", o.corrected or "", *o.choices, *o.shown):
            check_text(text, f"outcomes.{i}", parts.settings.max_text)
    pool = await run_sync(lambda: parts.catalog.pool(visible(caller, body.pool), fresh=True))
    for o in outcomes:
        if o.corrected is not None:
            pool.spec.verbalise(o.corrected)  # a label that the task has not is refused now, and not at its review
    return {"ids": await run_sync(parts.feedback.add, pool.row.id, outcomes)}


@router.get("/pools/{name}/feedback")
def list_feedback(
    pool: AnyPool, parts: Service, cursor: Cursor = "", limit: Limit = 100, state: State | None = None
) -> dict[str, Any]:
    """Outcomes in the order they came; `state=waiting` is the review queue."""
    rows = parts.feedback.page(pool.row.id, open_number(cursor), limit, state)
    behind = str(rows[-1].recorded.id) if len(rows) == limit else ""
    return {"feedback": [feedback_json(row) for row in rows]} | next_page(behind)


@router.get("/pools/{name}/feedback/export", response_class=StreamingResponse)
def export_feedback(
    pool: AnyPool, parts: Service, state: Annotated[State | None, Query(description="Only those.")] = None
) -> StreamingResponse:
    """All outcomes as NDJSON, in the order they came."""

    def lines() -> Iterator[bytes]:
        after = 0
        while page := parts.feedback.page(pool.row.id, after, _PAGE, state):
            yield b"".join(orjson.dumps(feedback_json(row)) + b"\n" for row in page)
            after = page[-1].recorded.id

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/pools/{name}/feedback/{number}/review", dependencies=_WRITES)
def review_feedback(pool: AnyPool, number: Number, body: ReviewBody, parts: Service) -> dict[str, Any]:
    """Accept a corrected output, which becomes a demonstration, or reject it."""
    recorded = parts.feedback.get(pool.row.id, number).recorded
    if not body.accept:
        parts.feedback.reject(pool.row.id, pool.row.name, number)
        return {"id": number, "state": "rejected"}
    if recorded.state not in ("waiting", "accepted"):
        raise ConflictError(f"feedback {number} is {recorded.state}; only a waiting correction can be accepted")
    output = body.output if body.output is not None else recorded.outcome.corrected or ""
    pool.spec.verbalise(output)  # a label that the task has not is refused before anything is accepted
    made = replace(recorded.solved(output), metadata={"source": "feedback"})
    check_demonstration(made, "output", parts.settings.max_text)
    accepted = partial(review, pool_id=pool.row.id, name=pool.row.name, number=number, state="accepted", output=output)
    parts.catalog.write(pool, [made], "replace", accepted)
    return {"id": number, "state": "accepted", "demonstration": demonstration_json(made)}
