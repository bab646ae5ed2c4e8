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
from udr.retriever import SPARES, arranged
from udr.types import Demonstration, Prompt

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["retrieval"])


@router.post("/retrieve", response_model=RetrieveAnswer)
async def retrieve_demonstrations(body: RetrieveBody, parts: Service, caller: By) -> Response:
    """The demonstrations of one pool that suit each query, in the order asked for."""

    def finish(made: Retrieval) -> Response:
        results = []
        for query, (found, _) in zip(made.queries, made.answers, strict=True):
            own = [found[i] for i in arranged(query, [f.demonstration for f in found], body.order)]
            result: dict[str, Any] = {"demonstrations": [retrieved_json(f) for f in own]}
            results.append(_explained(body, parts, made, result, [f.demonstration for f in own]))
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
    results = []
    for query, (found, _), prompt in zip(made.queries, made.answers, prompts, strict=True):
        messages = as_messages(made.pool.spec, prompt.demonstrations, query)
        results.append(_explained(body, parts, made, prompt_json(prompt, messages, found), prompt.demonstrations))
    return results


def _explained(
    body: RetrieveBody, parts: Parts, made: Retrieval, result: dict[str, Any], demonstrations: Sequence[Demonstration]
) -> dict[str, Any]:
    """A result with the tokens of each of its demonstrations, where that is asked for."""
    if body.explain:
        tokenizer = parts.tokenizers.get(body.tokenizer)
        for shown, d in zip(result["demonstrations"], demonstrations, strict=True):
            shown["tokens"] = len(tokenizer.encode(render_demonstration(made.pool.spec, d)))
    return result


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
