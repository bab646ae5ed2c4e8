"""The facade: a pool, a way to rank it, selection and order; from a query to demonstrations and a finished prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from udr.bm25 import BM25
from udr.errors import DataError
from udr.prompt import build_prompt, for_encoder
from udr.selection import order, select
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Encoder, FloatArray, IntArray, Prompt, Query, Tokenizer

__all__ = ["BM25Ranker", "DenseRanker", "NoRanker", "RandomRanker", "Ranker", "Retrieved", "Retriever"]

EXTRA = 8  # searched beyond what is asked, to make up for the query's own copies in the pool


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One demonstration chosen for a query, and why."""

    demonstration: Demonstration
    similarity: float
    rank: int  # 1 = the most similar of the pool


class Ranker(Protocol):
    """Orders a pool for queries: positions (n, k) best first (−1 = none) and similarities (n, k)."""

    def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]: ...


class NoRanker:
    """Retrieves nothing: the zero-shot baseline."""

    def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]:
        return np.empty((len(queries), 0), dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32)


class RandomRanker:
    """A fixed random order for each query, by seed and query id."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed

    def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]:
        from udr.mining import seeded

        k = min(k, self.size)
        rows = [seeded("random", self.seed, q.id).permutation(self.size)[:k] for q in queries]
        return np.array(rows, dtype=np.int64).reshape(len(queries), k), np.zeros((len(queries), k), dtype=np.float32)


class BM25Ranker:
    """BM25 over the pool's inputs: at test time the output is not known."""

    def __init__(self, pool: Sequence[Demonstration]) -> None:
        self._bm25 = BM25(pool)

    def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]:
        return self._bm25.search([q.input for q in queries], k)


class DenseRanker:
    """Inner product of an encoder's vectors, through the index; keeps the pool's vectors for the selections."""

    def __init__(self, spec: TaskSpec, pool: Sequence[Demonstration], encoder: Encoder) -> None:
        from udr.index import FlatIndex

        self.encoder = encoder
        self.instruction = spec.retrieval_instruction
        self.vectors = encoder.encode_demonstrations(for_encoder(spec, pool), self.instruction)
        self.index = FlatIndex(encoder.dim, encoder.fingerprint)
        self.index.add(np.arange(len(pool), dtype=np.int64), self.vectors, encoder.fingerprint)

    def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]:
        vectors = self.encoder.encode_queries(queries, self.instruction)
        hits = self.index.search(vectors, min(k, len(self.index)), self.encoder.fingerprint)
        return hits.rows, hits.scores


class Retriever:
    """Chooses demonstrations of one pool for queries, and builds their prompts."""

    def __init__(self, spec: TaskSpec, pool: Sequence[Demonstration], ranker: Ranker, seed: int = 0) -> None:
        if not pool:
            raise DataError(f"task {spec.name}: the pool is empty")
        self.spec = spec
        self.pool = tuple(pool)
        self.ranker = ranker
        self.seed = seed

    def retrieve(
        self, queries: Sequence[Query], k: int, *, selection: str = "top_k", considered: int = 100
    ) -> list[list[Retrieved]]:
        """The `k` chosen demonstrations of each query, best first; the query itself and its copies are left out.

        Selections other than `top_k` choose among the `considered` most similar ones.
        """
        wide = k if selection == "top_k" else max(k, considered)
        rows, scores = self.ranker.rank(queries, wide + EXTRA)
        results = []
        for query, own_rows, own_scores in zip(queries, rows, scores, strict=True):
            keep = [
                i
                for i, r in enumerate(own_rows)
                if r >= 0 and self.pool[r].id != query.id and self.pool[r].query.content_hash != query.content_hash
            ][:wide]
            found = [
                Retrieved(self.pool[own_rows[i]], float(own_scores[i]), rank) for rank, i in enumerate(keep, 1)
            ]
            if selection != "top_k" and found:
                found = self._select(query, found, own_rows[keep], k, selection)
            results.append(found[:k])
        return results

    def _select(
        self, query: Query, found: list[Retrieved], rows: IntArray, k: int, selection: str
    ) -> list[Retrieved]:
        vectors = getattr(self.ranker, "vectors", None)
        chosen = select(
            selection,
            np.array([f.similarity for f in found], dtype=np.float32),
            k,
            vectors=None if vectors is None else vectors[rows],
            labels=[f.demonstration.output for f in found],
            query_text=query.input,
            candidate_texts=[f.demonstration.input for f in found],
        )
        return [found[i] for i in chosen]

    def prompt(
        self,
        query: Query,
        found: Sequence[Retrieved],
        tokenizer: Tokenizer,
        budget: int,
        *,
        k: int | None = None,
        reserve: int = 0,
        arrange: str = "ascending",
    ) -> Prompt:
        """Fit the demonstrations into the token budget, best first, then set them in the order asked for."""
        ranked = [f.demonstration for f in found]
        prompt = build_prompt(self.spec, query, ranked, tokenizer, budget, k=k, reserve=reserve)
        if arrange == "ascending":
            return prompt
        from udr.prompt import rearrange

        best_first = prompt.demonstrations[::-1]
        positions = order(list(range(len(best_first))), [d.output for d in best_first], arrange, self.seed)
        return rearrange(self.spec, query, prompt, [best_first[p] for p in positions], tokenizer)
