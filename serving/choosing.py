"""From the nearest demonstrations to the chosen ones, and what is told of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from udr.filters import Condition
from udr.retriever import Retrieved
from udr.selection import COMPARE_VECTORS, select, tags_in
from udr.types import FloatArray, Query

__all__ = ["Answer", "Found", "PassedOver", "Search", "Vectors", "choose"]


class Found(NamedTuple):
    """A near demonstration and its row in the store and the index."""

    retrieved: Retrieved
    row: int


@dataclass(frozen=True, slots=True)
class Search:
    """What a request asks for beside its queries.

    Args:
        k: how many demonstrations.
        conditions: on the metadata.
        threshold: similarities below it are left out.
        selection: a name of udr.selection.SELECTIONS; others than top_k choose among the `considered` best.
        considered: how many those are.
        without_copies: leave out demonstrations whose input is the query's.
        passed_over: how many of those not chosen are told of.
    """

    k: int
    conditions: Sequence[Condition] = ()
    threshold: float | None = None
    selection: str = "top_k"
    considered: int = 100
    without_copies: bool = False
    passed_over: int = 0

    @property
    def wanted(self) -> int:
        """How many of the nearest the selection needs."""
        return self.k if self.selection == "top_k" else max(self.k, self.considered)

    @property
    def compares_vectors(self) -> bool:
        """True where the selection reads the vectors of what it chooses among."""
        return self.selection in COMPARE_VECTORS


class PassedOver(NamedTuple):
    """A near demonstration that was not chosen."""

    retrieved: Retrieved
    reason: str


class Answer(NamedTuple):
    """The chosen demonstrations of a query, best first, and the nearest of the others."""

    found: list[Retrieved]
    passed_over: list[PassedOver]


class Vectors(NamedTuple):
    """The vector of a query, and where those of rows are."""

    query: FloatArray  # (d,)
    of: Callable[[Sequence[int]], FloatArray]  # rows (m) → (m, d)


def choose(
    search: Search, query: Query, found: Sequence[Found], passed: list[PassedOver], vectors: Vectors | None
) -> Answer:
    """Choose among what was found for a query.

    Args:
        search: what is asked for.
        query: the query.
        found: admissible demonstrations, nearest first.
        passed: those that are not admissible, and why.
        vectors: that the selection compares; None: there are none.
    """
    chosen = _select(search, query, found[: search.wanted], vectors)
    if search.passed_over:
        ranks = {r.rank for r in chosen}
        reason = (
            f"not among the {search.k} nearest" if search.selection == "top_k" else f"{search.selection} chose others"
        )
        passed = [*passed, *(PassedOver(f.retrieved, reason) for f in found if f.retrieved.rank not in ranks)]
        passed.sort(key=lambda one: one.retrieved.rank)
    return Answer(chosen, passed[: search.passed_over])


def _select(search: Search, query: Query, found: Sequence[Found], vectors: Vectors | None) -> list[Retrieved]:
    hits = [f.retrieved for f in found]
    if search.selection == "top_k" or not hits:
        return hits[: search.k]
    relevance, own = np.array([h.similarity for h in hits], dtype=np.float32), None
    if vectors and search.compares_vectors:
        own = vectors.of([f.row for f in found])
        # scores of fused ranks have no common scale with what the vectors say of each other
        relevance = (own.astype(np.float64) * vectors.query).sum(axis=1).astype(np.float32)
    chosen = select(
        search.selection,
        relevance,
        search.k,
        vectors=own,
        labels=[h.demonstration.output for h in hits],
        query_text=query.input,
        candidate_texts=[h.demonstration.input for h in hits],
        tags=[tags_in(h.demonstration.metadata) for h in hits],
    )
    return [hits[i] for i in chosen]
