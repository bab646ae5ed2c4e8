"""The facade: a pool, a way to rank it, selection and order; from a query to demonstrations and a finished prompt.

A saved retriever is a folder: `encoder/`, `untrained/` (the encoder it started from, for tasks that come later) and for
each task `tasks/NAME/` with task.yaml, pool.jsonl and index/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from udr.artifacts import write_atomically
from udr.bm25 import BM25
from udr.config import load_config
from udr.data import read_demonstrations, write_demonstrations
from udr.draw import seeded
from udr.errors import ArtifactError, DataError, FingerprintMismatch, PromptTooLong, UnknownNameError
from udr.prompt import build_prompt, for_encoder, rearrange
from udr.selection import order, select, tags_in
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Dropped, Encoder, FloatArray, Index, IntArray, Prompt, Query, Tokenizer

if TYPE_CHECKING:
    from udr.index import FlatIndex

__all__ = [
    "SPARES",
    "BM25Ranker",
    "DenseRanker",
    "NoRanker",
    "RandomRanker",
    "Ranker",
    "Retrieved",
    "Retriever",
    "arranged",
    "arranged_prompt",
    "build_dense_ranker",
    "build_input_ranker",
    "index_vectors",
    "load_retriever",
    "most_copies",
    "save_task",
]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One demonstration chosen for a query, and why."""

    demonstration: Demonstration
    similarity: float
    rank: int  # 1 = the most similar of the pool


SPARES = 2  # candidates to retrieve for each demonstration wanted, for some will not fit the token budget


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
    """Inner product of an encoder's vectors, through the index."""

    def __init__(self, encoder: Encoder, index: Index, instruction: str = "") -> None:
        self.encoder = encoder
        self.index = index
        self.instruction = instruction

    def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]:
        vectors = self.encoder.encode_queries(queries, self.instruction)
        hits = self.index.search(vectors, min(k, len(self.index)), self.encoder.fingerprint)
        return hits.rows, hits.scores

    def vectors(self, rows: IntArray) -> FloatArray:
        return self.index.vectors(rows)


def build_dense_ranker(spec: TaskSpec, pool: Sequence[Demonstration], encoder: Encoder) -> DenseRanker:
    """Encode a pool and index it; row i of the index is demonstration i of the pool."""
    vectors = encoder.encode_demonstrations(for_encoder(spec, pool, encoder), spec.retrieval_instruction)
    return DenseRanker(encoder, index_vectors(vectors, encoder), spec.retrieval_instruction)


def build_input_ranker(pool: Sequence[Demonstration], encoder: Encoder) -> DenseRanker:
    """Inputs against inputs and nothing else, as a sentence encoder that was trained for no task is used."""
    return DenseRanker(encoder, index_vectors(encoder.encode_queries([d.query for d in pool]), encoder))


def index_vectors(vectors: FloatArray, encoder: Encoder) -> FlatIndex:
    """Index the vectors that an encoder made of a pool, row by row."""
    from udr.index import FlatIndex

    index = FlatIndex(encoder.dim, encoder.fingerprint)
    index.add(np.arange(len(vectors), dtype=np.int64), vectors, encoder.fingerprint)
    return index


class Retriever:
    """Chooses demonstrations of one pool for queries, and builds their prompts."""

    def __init__(self, spec: TaskSpec, pool: Sequence[Demonstration], ranker: Ranker, seed: int = 0) -> None:
        if not pool:
            raise DataError(f"task {spec.name}: the pool is empty")
        self.spec = spec
        self.pool = tuple(pool)
        self.ranker = ranker
        self.seed = seed
        self._extra = most_copies(self.pool)

    def retrieve(
        self, queries: Sequence[Query], k: int, *, selection: str = "top_k", considered: int = 100
    ) -> list[list[Retrieved]]:
        """The `k` chosen demonstrations of each query, best first; the query itself and its copies are left out.

        Selections other than `top_k` choose among the `considered` most similar ones.
        """
        wide = k if selection == "top_k" else max(k, considered)
        rows, scores = self.ranker.rank(queries, wide + self._extra)
        results = []
        for query, own_rows, own_scores in zip(queries, rows, scores, strict=True):
            keep = [
                i
                for i, r in enumerate(own_rows)
                if r >= 0 and self.pool[r].id != query.id and self.pool[r].query.content_hash != query.content_hash
            ][:wide]
            found = [Retrieved(self.pool[own_rows[i]], float(own_scores[i]), rank) for rank, i in enumerate(keep, 1)]
            if selection != "top_k" and found:
                found = self._select(query, found, own_rows[keep], k, selection)
            results.append(found[:k])
        return results

    def _select(self, query: Query, found: list[Retrieved], rows: IntArray, k: int, selection: str) -> list[Retrieved]:
        vectors_of = getattr(self.ranker, "vectors", None)  # lexical rankers have none
        chosen = select(
            selection,
            np.array([f.similarity for f in found], dtype=np.float32),
            k,
            vectors=vectors_of(rows) if vectors_of else None,
            labels=[f.demonstration.output for f in found],
            query_text=query.input,
            candidate_texts=[f.demonstration.input for f in found],
            tags=[tags_in(f.demonstration.metadata) for f in found],
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
        """As `arranged_prompt`, for this task."""
        return arranged_prompt(
            self.spec, query, found, tokenizer, budget, k=k, reserve=reserve, arrange=arrange, seed=self.seed
        )


def arranged(query: Query, best_first: Sequence[Demonstration], arrange: str, seed: int = 0) -> list[int]:
    """Places of a query's demonstrations, given best first, in another order.

    Raises:
        UnknownNameError: no such order.
    """
    order_seed = int(seeded("order", seed, query.id).integers(2**31))  # each query has a random order of its own
    return order(list(range(len(best_first))), [d.output for d in best_first], arrange, order_seed)


def arranged_prompt(
    spec: TaskSpec,
    query: Query,
    found: Sequence[Retrieved],
    tokenizer: Tokenizer,
    budget: int,
    *,
    k: int | None = None,
    reserve: int = 0,
    arrange: str = "ascending",
    seed: int = 0,
) -> Prompt:
    """Fit the demonstrations into the token budget, best first, then set them in the order asked for.

    In another order tokens may merge otherwise; where the text then needs a token too many, the least similar
    demonstration is dropped.

    Raises:
        PromptTooLong: the query alone exceeds the budget.
        UnknownNameError: no such order.
    """
    ranked = [f.demonstration for f in found]
    prompt = build_prompt(spec, query, ranked, tokenizer, budget, k=k, reserve=reserve)
    if arrange == "ascending":
        return prompt
    best_first = list(prompt.demonstrations[::-1])
    while True:  # the query alone fits
        positions = arranged(query, best_first, arrange, seed)
        try:
            return rearrange(spec, query, prompt, [best_first[p] for p in positions], tokenizer, reserve)
        except PromptTooLong as error:
            dropped = Dropped(best_first.pop().id, str(error), 0)
            prompt = replace(prompt, dropped=(*prompt.dropped, dropped))


def most_copies(pool: Sequence[Demonstration]) -> int:
    """How many rows a query can lose at most: all rows of one input, and the row of its own id."""
    return max(Counter(d.query.content_hash for d in pool).values(), default=0) + 1


def save_task(path: Path, spec: TaskSpec, pool: Sequence[Demonstration], encoder: Encoder) -> None:
    """Write a task's words, pool and index below a retriever folder."""
    folder = path / "tasks" / spec.name
    ranker = build_dense_ranker(spec, pool, encoder)
    write_atomically(folder / "task.yaml", spec.dump_yaml().encode())
    write_demonstrations(folder / "pool.jsonl", pool)
    ranker.index.save(folder / "index")


def load_retriever(path: Path, task: str, encoder: Encoder | None = None, seed: int = 0) -> Retriever:
    """Open one task of a saved retriever; `encoder` spares loading it again for the next task.

    Raises:
        ArtifactError: files are missing or damaged, or pool and index differ in size.
        UnknownNameError: the retriever holds no such task (lists the near ones).
        FingerprintMismatch: the index was made by another encoder.
    """
    from udr.encoder import load_encoder
    from udr.index import load_index

    folder = path / "tasks" / task
    known = [p.name for p in (path / "tasks").glob("*/")]
    if not known:
        raise ArtifactError(f"{path}: not a retriever folder (no tasks/); run: udr run CONFIG")
    if task not in known:  # a name, and no way through folders
        raise UnknownNameError("task of this retriever", task, known)
    spec = load_config(TaskSpec, folder / "task.yaml")
    pool = read_demonstrations(folder / "pool.jsonl")
    index = load_index(folder / "index")
    own = encoder or load_encoder(path / "encoder")
    if len(index) != len(pool):
        raise ArtifactError(f"{folder}: the index holds {len(index)} vectors, the pool {len(pool)}; run: udr index")
    if index.fingerprint != own.fingerprint:
        raise FingerprintMismatch(f"{folder}: indexed with encoder {index.fingerprint}, in hand is {own.fingerprint}")
    return Retriever(spec, pool, DenseRanker(own, index, spec.retrieval_instruction), seed)
