"""Retrieval and prompts."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter

from serving.catalog import Encoding, Pool
from serving.dependencies import Parts, Service, too_many
from serving.routes.pools import check_text
from serving.schemas import PromptBody, RetrieveBody, prompt_json, retrieved_json
from udr.filters import parse_filter
from udr.prompt import as_messages
from udr.retriever import SPARES, Retrieved, arranged_prompt
from udr.types import FloatArray, Query

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["retrieval"])


@router.post("/retrieve")
async def retrieve(body: RetrieveBody, parts: Service) -> dict[str, Any]:
    """The demonstrations of one pool that suit each query, best first."""
    pool, found = await _retrieve(body, parts, body.k)
    results = [{"demonstrations": [retrieved_json(f) for f in own]} for _, own in found]
    return {"pool": pool.row.name, "seq": pool.row.seq, "results": results}


@router.post("/prompt")
async def prompt(body: PromptBody, parts: Service) -> dict[str, Any]:
    """The finished prompt of each query, as text and as chat messages, within the token budget."""
    pool, found = await _retrieve(body, parts, SPARES * body.k)
    return {"pool": pool.row.name, "seq": pool.row.seq, "results": await run_sync(_prompts, body, parts, pool, found)}


async def _retrieve(body: RetrieveBody, parts: Parts, k: int) -> tuple[Pool, list[tuple[Query, list[Retrieved]]]]:
    too_many("queries", len(body.queries), parts.settings.max_items)
    queries = body.parsed_queries()
    for i, query in enumerate(queries):
        check_text(query.input, f"queries.{i}", parts.settings.max_text)
    conditions = parse_filter(body.where)

    def begin() -> tuple[Pool, Encoding | None, Future[FloatArray] | None]:
        pool = parts.catalog.pool(body.pool)
        encoding = parts.catalog.choose(pool, body.retriever)
        return pool, encoding, parts.worker.encode_queries(encoding.encoder, queries) if encoding else None

    pool, encoding, waiting = await run_sync(begin)
    vectors: FloatArray | None = None
    if waiting is not None:
        vectors = await asyncio.wrap_future(waiting)

    def finish() -> list[list[Retrieved]]:
        return parts.catalog.retrieve(
            pool,
            encoding,
            queries,
            vectors,
            k,
            conditions=conditions,
            threshold=body.threshold,
            selection=body.selection,
            considered=body.considered,
            without_copies=body.without_copies,
        )

    return pool, list(zip(queries, await run_sync(finish), strict=True))


def _prompts(
    body: PromptBody, parts: Parts, pool: Pool, found: list[tuple[Query, list[Retrieved]]]
) -> list[dict[str, Any]]:
    tokenizer = parts.tokenizers.get(body.tokenizer)
    results = []
    for query, own in found:
        made = arranged_prompt(
            pool.spec, query, own, tokenizer, body.budget, k=body.k, reserve=body.reserve, arrange=body.order
        )
        results.append(prompt_json(made, as_messages(pool.spec, made.demonstrations, query)))
    return results
