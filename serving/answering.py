"""From a request to its demonstrations and prompts: the path that retrieval, prompts and the OpenAI front share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

from anyio.to_thread import run_sync

from serving.access import Caller
from serving.catalog import Pool, Ranking
from serving.choosing import Answer, Search
from serving.dependencies import Parts, too_many, visible
from serving.loading import check_text
from serving.retrievers import PoolEncoder
from serving.schemas import FittedBody, RetrieveBody
from udr.errors import ConfigError
from udr.filters import parse_filter
from udr.retriever import arranged_prompt
from udr.types import FloatArray, Prompt, Query

__all__ = ["TOLD", "Retrieval", "encode", "fit", "retrieve"]

T = TypeVar("T")
_CONSIDERED = 5  # demonstrations that may be considered for each that may be given
TOLD = 10  # demonstrations not chosen that `explain` tells of


class Retrieval(NamedTuple):
    """What was found for the queries of a request."""

    pool: Pool
    ranking: Ranking
    queries: list[Query]
    cut: list[int]
    answers: list[Answer]


async def encode(parts: Parts, encoder: PoolEncoder, queries: Sequence[Query]) -> tuple[FloatArray, list[int]]:
    """Vectors of queries (n, d), and the tokens of each (n,) that the encoder left out.

    Raises:
        Overloaded: too many wait.
    """
    vectors = await asyncio.wrap_future(parts.worker.encode_queries(encoder, queries))
    return vectors, await run_sync(encoder.tokens_cut, queries)


async def retrieve(
    body: RetrieveBody,
    parts: Parts,
    caller: Caller,
    k: int,
    finish: Callable[[Retrieval], T],
    known: Pool | None = None,
) -> T:
    """Find the `k` demonstrations that suit each query, whatever number the body asks for, and make something of them.

    All of it happens in one thread where the encoder is free, for each change of threads costs some tenths of a
    millisecond; else the queries wait in line for the encoder, and no thread waits with them.

    Args:
        body: the queries and how they are answered.
        parts: of the service.
        caller: who may see the pool or not.
        k: how many.
        finish: what is made, in a thread where it may take its time.
        known: the pool where it was looked up already.

    Raises:
        UDRError: as the parts of the service do; the queries together ask for too much.
        HTTPException: there are too many queries.
    """
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
        TOLD if body.explain else 0,
    )

    _check_size(len(queries), body.k, search, parts.settings.max_results)

    def rest(pool: Pool, ranking: Ranking, vectors: FloatArray | None) -> T:
        cut = ranking.encoding.encoder.tokens_cut(queries) if ranking.encoding else [0] * len(queries)
        answers = parts.catalog.retrieve(pool, ranking, queries, vectors, search)
        return finish(Retrieval(pool, ranking, queries, cut, answers))

    def at_once() -> tuple[Pool, Ranking, T | None]:
        pool = known or parts.catalog.pool(visible(caller, body.pool))
        ranking = parts.catalog.rank_by(pool, body.retriever)
        vectors = parts.worker.encode_now(ranking.encoding.encoder, queries) if ranking.encoding else None
        waits = ranking.encoding is not None and vectors is None
        return pool, ranking, None if waits else rest(pool, ranking, vectors)

    pool, ranking, made = await run_sync(at_once)
    if made is None and ranking.encoding:
        vectors = await asyncio.wrap_future(parts.worker.encode_queries(ranking.encoding.encoder, queries))
        made = await run_sync(rest, pool, ranking, vectors)
    return cast(T, made)


def _check_size(n: int, k: int, search: Search, limit: int) -> None:
    """Refuse a request whose queries together ask for too much.

    Raises:
        ConfigError: more than `limit` demonstrations, or more than five times as many to choose among.
    """
    for what, each, most in (("k", k, limit), ("considered", search.wanted, _CONSIDERED * limit)):
        if n * each > most:
            raise ConfigError(
                f"{what}: {n} queries of {each} demonstrations each; a request has at most {most} "
                "together: ask for fewer, or in several requests"
            )


def fit(body: FittedBody, parts: Parts, made: Retrieval) -> list[Prompt]:
    """The finished prompt of each query.

    Raises:
        PromptTooLong: a query alone exceeds the budget.
        UnknownNameError: no such tokenizer.
    """
    tokenizer = parts.tokenizers.get(body.tokenizer)
    return [
        arranged_prompt(
            made.pool.spec, query, found, tokenizer, body.budget, k=body.k, reserve=body.reserve, arrange=body.order
        )
        for query, (found, _) in zip(made.queries, made.answers, strict=True)
    ]
