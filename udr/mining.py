"""One mining round: propose candidates, let the LM score them, rank them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal
from warnings import warn

import numpy as np

from udr.bm25 import BM25
from udr.candidates import with_ranks
from udr.data import TaskData
from udr.draw import seeded, spread
from udr.errors import DataError, UDRWarning
from udr.prompt import render_demonstration
from udr.retriever import build_dense_ranker, most_copies
from udr.scoring.feedback import Pair, Shortcut, score_pairs
from udr.tasks.spec import TaskSpec
from udr.types import Candidate, CandidateList, Demonstration, Encoder, FloatArray, LMScorer, Progress, Tokenizer

BORDER = 2  # tokens that a text may gain where it is put together with another: BOS, the joiner

__all__ = ["choose_queries", "drop_long", "pairs_of", "propose_bm25", "propose_dense", "sample", "score_lists"]


def choose_queries(pool: Sequence[Demonstration], count: int, seed: int, balanced: bool = False) -> list[Demonstration]:
    """Draw training queries from the pool; a larger `count` keeps the ones a smaller one drew. 0 means all.

    `balanced` takes the outputs in turn, for tasks where a few labels hold most rows.
    """
    order: Sequence[int] = seeded("queries", seed).permutation(len(pool)).tolist()
    if balanced:
        order = spread(order, [d.output for d in pool])
    return [pool[i] for i in order[: count or len(pool)]]


def drop_long(spec: TaskSpec, pool: Sequence[Demonstration], tokenizer: Tokenizer, limit: int) -> list[Demonstration]:
    """Keep demonstrations of which any two fit `limit` LM tokens, one as z and one as the query with any option.

    The LM's feedback on a longer one would cost most and could hardly be used: it would fill a prompt alone. A warning
    says how many are left out.

    Raises:
        DataError: none is short enough.
    """
    sizes: dict[str, int] = {}

    def size(option: str) -> int:
        if option not in sizes:
            sizes[option] = len(tokenizer.encode(option))
        return sizes[option]

    def longest(d: Demonstration) -> int:
        """Tokens with the longest option in the answer's place."""
        own = len(tokenizer.encode(render_demonstration(spec, d)))
        options = spec.options(d.choices)
        return own + (max(map(size, options)) - size(spec.verbalise(d.output)) if options else 0)

    kept = [d for d in pool if 2 * (longest(d) + BORDER) <= limit]
    if not kept:
        raise DataError(f"task {spec.name}: no two demonstrations fit {limit} tokens; raise mining.max_tokens")
    if left_out := len(pool) - len(kept):
        warn(
            f"task {spec.name}: {left_out:,} of {len(pool):,} demonstrations left out of mining: "
            f"two of them exceed mining.max_tokens ({limit})",
            UDRWarning,
            stacklevel=2,
        )
    return kept


def _exclude(query: Demonstration, found: Sequence[Demonstration]) -> list[int]:
    """Positions of `found` that are neither the query nor hold its input: by id and by content hash."""
    own_input = query.query.content_hash
    return [i for i, d in enumerate(found) if d.id != query.id and d.query.content_hash != own_input]


def _lists(
    task: str,
    queries: Sequence[Demonstration],
    pool: Sequence[Demonstration],
    rows: np.ndarray,
    scores: FloatArray,
    k: int,
) -> list[CandidateList]:
    lists = []
    for query, own_rows, own_scores in zip(queries, rows, scores, strict=True):
        found = [pool[r] for r in own_rows if r >= 0]
        keep = _exclude(query, found)[:k]
        lists.append(CandidateList(task, query.id, tuple(Candidate(found[i].id, float(own_scores[i])) for i in keep)))
    return lists


def propose_bm25(
    spec: TaskSpec, pool: Sequence[Demonstration], queries: Sequence[Demonstration], k: int
) -> list[CandidateList]:
    """Top `k` by BM25: over inputs for classification and multiple choice, over outputs for generation."""
    field: Literal["output", "input"] = "output" if spec.kind == "generation" else "input"
    bm25 = BM25(pool, field)
    rows, scores = bm25.search([getattr(q, field) for q in queries], k + most_copies(pool))
    return _lists(spec.name, queries, pool, rows, scores, k)


def propose_dense(
    spec: TaskSpec, pool: Sequence[Demonstration], queries: Sequence[Demonstration], k: int, encoder: Encoder
) -> list[CandidateList]:
    """Top `k` by the encoder's inner product."""
    ranker = build_dense_ranker(spec, pool, encoder)
    rows, scores = ranker.rank([q.query for q in queries], k + most_copies(pool))
    return _lists(spec.name, queries, pool, rows, scores, k)


def sample(
    lists: Sequence[CandidateList], count: int, seed: int, outputs: Mapping[str, str] | None = None
) -> list[CandidateList]:
    """Keep `count` candidates of each list, drawn uniformly; a larger `count` keeps what a smaller one drew. 0: all.

    With `outputs` (demonstration id -> output) the outputs are taken in turn, so that a list shows the LM more than
    its commonest label.
    """
    kept = []
    for one in lists:
        order = seeded("candidates", seed, one.task, one.query_id).permutation(len(one.candidates)).tolist()
        if outputs is not None:
            order = spread(order, [outputs[c.demonstration_id] for c in one.candidates])
        chosen = sorted(order[: count or len(order)])
        kept.append(replace(one, candidates=tuple(one.candidates[i] for i in chosen)))
    return kept


def pairs_of(data: TaskData, lists: Sequence[CandidateList]) -> list[Pair]:
    """Every (candidate, query) of the lists, in their order.

    Raises:
        DataError: the lists were made over another pool.
    """
    by_id = data.by_id
    unknown = {i for one in lists for i in (one.query_id, *(c.demonstration_id for c in one.candidates))} - by_id.keys()
    if unknown:
        raise DataError(f"task {data.spec.name}: the candidate lists name {min(unknown)}, which the pool does not hold")
    return [(by_id[c.demonstration_id], by_id[one.query_id]) for one in lists for c in one.candidates]


def score_lists(
    data: TaskData,
    lists: Sequence[CandidateList],
    scorer: LMScorer,
    progress: Progress | None = None,
    gold_only: bool = False,
    shortcut: Shortcut = "none",
) -> list[CandidateList]:
    """Score every candidate with the LM and rank each list; `shortcut` as in `udr.scoring.feedback.score_pairs`.

    Raises:
        DataError: the lists were made over another pool.
    """
    pairs = pairs_of(data, lists)
    scores = iter(score_pairs(data.spec, scorer, pairs, progress, gold_only, shortcut).tolist())
    return [
        replace(one, candidates=with_ranks([replace(c, lm_score=next(scores)) for c in one.candidates]))
        for one in lists
    ]
