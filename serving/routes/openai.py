"""The OpenAI-compatible front: demonstrations are put into requests that go through to an LLM server; embeddings."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from pydantic import Field, model_validator

from serving.access import Caller
from serving.answering import Retrieval, encode, fit, retrieve
from serving.catalog import Pool
from serving.dependencies import By, Parts, Service, too_many, visible
from serving.errors import OPENAI_PROBLEMS
from serving.front import (
    FIELD,
    addressed,
    chat_media,
    chat_query,
    completion_queries,
    front_of,
    with_prompts,
    with_text,
    with_turns,
)
from serving.loading import check_text
from serving.retrievers import PoolEncoder
from serving.schemas import Body, FrontBody, MediaBody, QueryBody, RetrieveBody
from serving.upstream import Relay, Upstream
from udr.errors import ConfigError, DataError, NotFoundError
from udr.retriever import SPARES
from udr.tasks.spec import TaskSpec
from udr.types import Media, Prompt, Query

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=OPENAI_PROBLEMS)
POOL_HEADER = "x-udr-pool"
_MEDIA = re.compile(r"data:(image|video|audio)/[\w.+-]+[;,]", re.IGNORECASE)
_TOLD = 4096  # characters of the ids that are told in a header
_ANY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@router.post("/chat/completions", openapi_extra=_ANY, response_class=Response)
async def chat(request: Request, parts: Service, caller: By) -> Response:
    """As the LLM server's, with `model` as `POOL@MODEL`; a field `udr` replaces settings of the pool's front."""

    def placed(body: dict[str, Any], front: FrontBody, spec: TaskSpec, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return with_turns(body, spec, prompts[0]) if front.style == "turns" else with_text(body, prompts[0])

    def asked(body: dict[str, Any]) -> list[QueryBody | str]:
        return [QueryBody(input=chat_query(body), choices=[], media=chat_media(body))]

    return await _forward(request, parts, caller, asked, placed)


@router.post("/completions", openapi_extra=_ANY, response_class=Response)
async def complete(request: Request, parts: Service, caller: By) -> Response:
    """As the LLM server's; a prompt is a query, and what goes on is the finished prompt."""

    def placed(body: dict[str, Any], front: FrontBody, spec: TaskSpec, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return with_prompts(body, prompts)

    return await _forward(request, parts, caller, lambda body: [*completion_queries(body)], placed)


@router.get("/models")
async def models(request: Request, parts: Service, caller: By) -> dict[str, Any]:
    """The LLM server's models, each also behind every pool that the caller may read."""
    said = await _upstream(parts).models(_headers(request, parts))
    pools = await run_sync(lambda: parts.catalog.store.pools("", parts.settings.max_items, caller.pools))
    behind = [{**row, "id": f"{p.name}@{name}"} for p in pools for name, row in _named(said).items()]
    return {**said, "data": [*said["data"], *behind]}


@router.get("/models/{model:path}")
async def model(model: str, request: Request, parts: Service, caller: By) -> dict[str, Any]:
    """One of the LLM server's models, or one behind a pool that the caller may read."""
    rows = _named(await _upstream(parts).models(_headers(request, parts)))
    if model in rows:
        return rows[model]
    pool, _, name = model.partition("@")
    if name not in rows:
        raise NotFoundError(f"no model {model!r}; GET /v1/models lists them")
    await run_sync(parts.catalog.pool, visible(caller, pool))
    return {**rows[name], "id": model}


def _named(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Models by their ids, of a list that may hold other things too."""
    return {r["id"]: r for r in said["data"] if isinstance(r, dict) and isinstance(r.get("id"), str)}


class EmbeddingsBody(Body):
    """Texts that are to become vectors; a data-URI stands for the picture, clip or sound that it holds."""

    input: str | Annotated[list[str], Field(min_length=1)]
    model: str = Field(description="A retriever (GET /v1/retrievers), or POOL@ for queries of a pool under its own.")
    encoding_format: Literal["float", "base64"] = "float"
    user: str = ""

    @model_validator(mode="after")
    def _media_are_no_larger_than_elsewhere(self) -> EmbeddingsBody:
        self.queries()
        return self

    def queries(self) -> list[Query]:
        """What is to be encoded."""
        found = []
        for i, text in enumerate([self.input] if isinstance(self.input, str) else self.input):
            media: tuple[Media, ...] = ()
            if kind := _MEDIA.match(text):
                own = MediaBody.model_validate({"kind": kind[1].lower(), "uri": text})
                media = (Media(own.kind, own.uri),)
            found.append(Query(f"input-{i}", "" if media else text, media=media))
        return found


@router.post("/embeddings")
async def embed(body: EmbeddingsBody, parts: Service, caller: By) -> Response:
    """Vectors of texts, pictures, clips and sounds as queries, in OpenAI's form."""
    queries = body.queries()
    too_many("inputs", len(queries), parts.settings.max_items)
    for i, query in enumerate(queries):
        check_text(query.input, f"input.{i}", parts.settings.max_text)
    encoder = await run_sync(_encoder, parts, caller, body.model)
    if encoder.reads_texts_alone:
        for i, query in enumerate(queries):
            if query.media:
                raise DataError(f"input.{i}: a data-URI of kind {query.media[0].kind}; {body.model} reads texts alone")
    vectors, cut = await encode(parts, encoder, queries)
    raw = np.ascontiguousarray(vectors, dtype="<f4")
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(v.tobytes()).decode() if body.encoding_format == "base64" else v.tolist(),
        }
        for i, v in enumerate(raw)
    ]
    tokens = sum(await run_sync(encoder.tokens_read, queries))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    whole: dict[str, Any] = {"object": "list", "model": body.model, "data": data, "usage": usage}
    if any(cut):
        whole["tokens_cut"] = cut
    return Response(orjson.dumps(whole), media_type="application/json")


def _encoder(parts: Parts, caller: Caller, model: str) -> PoolEncoder:
    """What a name of `embeddings` stands for."""
    pool, at, rest = model.partition("@")
    if not at:
        return parts.catalog.retrievers.plain(model)
    if rest:
        raise ConfigError(f"model {model!r}: expected the name of a retriever, or POOL@")
    encoding = parts.catalog.rank_by(parts.catalog.pool(visible(caller, pool)), "").encoding
    if encoding is None:
        raise ConfigError(f"pool {pool!r} has no vectors; PUT /v1/pools/{pool}/retriever gives it some")
    return encoding.encoder


def _upstream(parts: Parts) -> Upstream:
    if parts.upstream is None:
        raise NotFoundError("no LLM server stands behind this service; set UDR_UPSTREAM")
    return parts.upstream


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the body is not JSON ({error})") from None
    if not isinstance(body, dict):
        raise ConfigError("the body is not a JSON object")
    return body


async def _forward(
    request: Request,
    parts: Parts,
    caller: Caller,
    queries_of: Callable[[dict[str, Any]], list[QueryBody | str]],
    placed: Callable[[dict[str, Any], FrontBody, TaskSpec, Sequence[Prompt]], dict[str, Any]],
) -> Relay:
    """Put the demonstrations of the pool that `model` names into a request, and send it on."""
    upstream, body = _upstream(parts), await _json(request)
    to, own = addressed(body, request.headers.get(POOL_HEADER)), body.pop(FIELD, None)
    told: list[tuple[bytes, bytes]] = []
    if to.pool:
        pool = await run_sync(parts.catalog.pool, visible(caller, to.pool))
        front = front_of(pool.row.front, own)
        prompts, cut = await _prompts(parts, caller, pool, front, queries_of(body))
        body, told = placed(body, front, pool.spec, prompts), _told(pool, prompts, cut)
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    try:
        content = orjson.dumps({**body, "model": to.model})
    except orjson.JSONEncodeError as error:  # what is read may be deeper than what is written
        raise ConfigError(f"the body cannot be sent on ({error})") from None
    return Relay(upstream, upstream.request(path, content, _headers(request, parts)), told)


async def _prompts(
    parts: Parts, caller: Caller, pool: Pool, front: FrontBody, queries: Sequence[QueryBody | str]
) -> tuple[list[Prompt], int]:
    """The prompt of each query, and how many tokens of the queries the retriever's encoder left out."""
    for query in queries:
        if isinstance(query, QueryBody) and not query.input.strip():
            await run_sync(_check_wordless, parts, pool, front.retriever, query)
    choice = front.model_dump(include=set(RetrieveBody.model_fields))
    asked = RetrieveBody(pool=pool.row.name, queries=list(queries), **choice)

    def finish(made: Retrieval) -> tuple[list[Prompt], int]:
        return fit(front, parts, made), sum(made.cut)

    return await retrieve(asked, parts, caller, SPARES * front.k, finish, pool)


def _check_wordless(parts: Parts, pool: Pool, retriever: str, query: QueryBody) -> None:
    """A turn without words is retrieved for by what it shows or plays, where the retriever reads such things.

    Raises:
        ConfigError: there is nothing that the retriever could read.
    """
    if not query.media:
        raise ConfigError(
            "messages: the last user's holds no text and no picture, clip or sound as a data-URI to retrieve for"
        )
    ranking = parts.catalog.rank_by(pool, retriever)
    if ranking.encoding is None or ranking.encoding.encoder.reads_texts_alone:
        raise ConfigError(
            f"messages: the last user's holds no text, and {ranking.name} reads texts alone; write some, "
            f"or send it without pool {pool.row.name!r}"
        )


def _told(pool: Pool, prompts: Sequence[Prompt], cut: int) -> list[tuple[bytes, bytes]]:
    """What an OpenAI client does not read and others may: which demonstrations stand in the prompt (of the first)."""
    ids = ",".join(quote(d.id, safe="") for d in prompts[0].demonstrations)
    found = {
        "x-udr-pool": pool.row.name,
        "x-udr-demonstrations": ids if len(ids) <= _TOLD else ids[:_TOLD].rpartition(",")[0],
        "x-udr-tokens": str(prompts[0].tokens),
        "x-udr-dropped": str(len(prompts[0].dropped)),
        **({"x-udr-tokens-cut": str(cut)} if cut else {}),
    }
    return [(name.encode(), value.encode()) for name, value in found.items()]


def _headers(request: Request, parts: Parts) -> list[tuple[bytes, bytes]]:
    """The caller's own headers, byte for byte; its key too where it cannot be this service's."""
    return [
        (name, value) for name, value in request.headers.raw if not (parts.settings.key and name == b"authorization")
    ]
