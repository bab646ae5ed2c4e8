"""Retrieval and prompts."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from serving.catalog import Pool, Ranking
from serving.choosing import Answer, Search
from serving.dependencies import By, Parts, Service, too_many, visible
from serving.loading import check_text
from serving.schemas import (
    PromptAnswer,
    PromptBody,
    RetrieveAnswer,
    RetrieveBody,
    passed_over_json,
    prompt_json,
    retrieved_json,
)
from udr.filters import parse_filter
from udr.prompt import as_messages, render_demonstration
from udr.retriever import SPARES, arranged_prompt
from udr.types import FloatArray, Query

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["retrieval"])
_TOLD = 10  # demonstrations not chosen that `explain` tells of


@router.post("/retrieve", response_model=RetrieveAnswer)
async def retrieve(body: RetrieveBody, parts: Service, caller: By) -> Response:
    """The demonstrations of one pool that suit each query, best first."""
    found = await _retrieve(body, parts, caller, body.k)
    return found.answer([{"demonstrations": [retrieved_json(f) for f in a.found]} for a in found.answers], body.explain)


@router.post("/prompt", response_model=PromptAnswer)
async def prompt(body: PromptBody, parts: Service, caller: By) -> Response:
    """The finished prompt of each query, as text and as chat messages, within the token budget."""
    found = await _retrieve(body, parts, caller, SPARES * body.k)
    return found.answer(await run_sync(_prompts, body, parts, found), body.explain)


class _Retrieved(NamedTuple):
    pool: Pool
    ranking: Ranking
    queries: list[Query]
    cut: list[int]
    answers: list[Answer]

    def answer(self, results: list[dict[str, Any]], explain: bool) -> Response:
        """The whole answer, with what is to be told of each result beside itself."""
        for result, answer, cut in zip(results, self.answers, self.cut, strict=True):
            if cut:
                result["tokens_cut"] = cut  # of the query, which the encoder did not read to its end
            if explain:
                result["passed_over"] = [passed_over_json(p) for p in answer.passed_over]
        encoding = self.ranking.encoding
        whole = {
            "pool": self.pool.row.name,
            "seq": self.pool.row.seq,
            "retriever": self.ranking.name,
            "fingerprint": encoding.row.fingerprint if encoding else None,
            "results": results,
        }
        return Response(orjson.dumps(whole), media_type="application/json")


async def _retrieve(body: RetrieveBody, parts: Parts, caller: By, k: int) -> _Retrieved:
    too_many("queries", len(body.queries), parts.settings.max_items)
    queries = body.parsed_queries()
    for i, query in enumerate(queries):
        check_text(query.input, f"queries.{i}", parts.settings.max_text)
    search = Search(
        k,
        parse_filter(body.where),
        body.threshold,
        body.selection,
        body.considered,
        body.without_copies,
        _TOLD if body.explain else 0,
    )

    def look_up() -> tuple[Pool, Ranking]:
        pool = parts.catalog.pool(visible(caller, body.pool))
        return pool, parts.catalog.rank_by(pool, body.retriever)

    pool, ranking = await run_sync(look_up)
    vectors: FloatArray | None = None
    cut = [0] * len(queries)
    if ranking.encoding:
        encoder = ranking.encoding.encoder
        vectors = await asyncio.wrap_future(parts.worker.encode_queries(encoder, queries))
        cut = encoder.tokens_cut(queries)
    answers = await run_sync(parts.catalog.retrieve, pool, ranking, queries, vectors, search)
    return _Retrieved(pool, ranking, queries, cut, answers)


def _prompts(body: PromptBody, parts: Parts, made: _Retrieved) -> list[dict[str, Any]]:
    tokenizer, spec = parts.tokenizers.get(body.tokenizer), made.pool.spec
    results = []
    for query, (found, _) in zip(made.queries, made.answers, strict=True):
        prompt = arranged_prompt(
            spec, query, found, tokenizer, body.budget, k=body.k, reserve=body.reserve, arrange=body.order
        )
        result = prompt_json(prompt, as_messages(spec, prompt.demonstrations, query), found)
        if body.explain:
            for shown, d in zip(result["demonstrations"], prompt.demonstrations, strict=True):
                shown["tokens"] = len(tokenizer.encode(render_demonstration(spec, d)))
        results.append(result)
    return results
