"""Retrieval and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Response

from serving.answering import TOLD, Retrieval, fit, retrieve
from serving.choosing import Answer, PassedOver
from serving.dependencies import By, Parts, Service
from serving.schemas import (
    PromptAnswer,
    PromptBody,
    RetrieveAnswer,
    RetrieveBody,
    passed_over_json,
    prompt_json,
    retrieved_json,
)
from udr.prompt import as_messages, render_demonstration
from udr.retriever import SPARES
from udr.types import Prompt

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["retrieval"])


@router.post("/retrieve", response_model=RetrieveAnswer)
async def retrieve_demonstrations(body: RetrieveBody, parts: Service, caller: By) -> Response:
    """The demonstrations of one pool that suit each query, best first."""

    def finish(made: Retrieval) -> Response:
        results = [{"demonstrations": [retrieved_json(f) for f in a.found]} for a in made.answers]
        return _answer(made, results, body.explain)

    return await retrieve(body, parts, caller, body.k, finish)


@router.post("/prompt", response_model=PromptAnswer)
async def build_prompt(body: PromptBody, parts: Service, caller: By) -> Response:
    """The finished prompt of each query, as text and as chat messages, within the token budget."""

    def finish(made: Retrieval) -> Response:
        prompts = fit(body, parts, made)
        results = _prompts(body, parts, made, prompts)
        if body.explain:
            made = made._replace(answers=[_with_spares(a, p) for a, p in zip(made.answers, prompts, strict=True)])
        return _answer(made, results, body.explain)

    return await retrieve(body, parts, caller, SPARES * body.k, finish)


def _with_spares(answer: Answer, prompt: Prompt) -> Answer:
    """An answer that also tells of those that would have stood in for what did not fit."""
    told = {d.id for d in prompt.demonstrations} | {d.demonstration_id for d in prompt.dropped}
    spares = [PassedOver(f, "would have stood in for one that did not fit") for f in answer.found]
    passed = [*(s for s in spares if s.retrieved.demonstration.id not in told), *answer.passed_over]
    return answer._replace(passed_over=sorted(passed, key=lambda one: one.retrieved.rank)[:TOLD])


def _prompts(body: PromptBody, parts: Parts, made: Retrieval, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    spec, results = made.pool.spec, []
    for query, (found, _), prompt in zip(made.queries, made.answers, prompts, strict=True):
        result = prompt_json(prompt, as_messages(spec, prompt.demonstrations, query), found)
        if body.explain:
            tokenizer = parts.tokenizers.get(body.tokenizer)
            for shown, d in zip(result["demonstrations"], prompt.demonstrations, strict=True):
                shown["tokens"] = len(tokenizer.encode(render_demonstration(spec, d)))
        results.append(result)
    return results


def _answer(made: Retrieval, results: list[dict[str, Any]], explain: bool) -> Response:
    """The whole answer, with what is to be told of each result beside itself."""
    for result, answer, cut in zip(results, made.answers, made.cut, strict=True):
        if cut:
            result["tokens_cut"] = cut  # of the query, which the encoder did not read to its end
        if explain:
            result["passed_over"] = [passed_over_json(p) for p in answer.passed_over]
    encoding = made.ranking.encoding
    whole = {
        "pool": made.pool.row.name,
        "seq": made.pool.row.seq,
        "retriever": made.ranking.name,
        "fingerprint": encoding.row.fingerprint if encoding else None,
        "results": results,
    }
    return Response(orjson.dumps(whole), media_type="application/json")
