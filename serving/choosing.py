"""From the nearest demonstrations to the chosen ones, and what is told of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from udr.filters import Condition
from udr.live_index import LiveIndex
from udr.retriever import Retrieved
from udr.selection import select, tags_in
from udr.types import Query

__all__ = ["Answer", "Found", "PassedOver", "Search", "choose"]


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


class PassedOver(NamedTuple):
    """A near demonstration that was not chosen."""

    retrieved: Retrieved
    reason: str


class Answer(NamedTuple):
    """The chosen demonstrations of a query, best first, and the nearest of the others."""

    found: list[Retrieved]
    passed_over: list[PassedOver]


def choose(
    search: Search, query: Query, found: Sequence[Found], passed: list[PassedOver], index: LiveIndex | None
) -> Answer:
    """Choose among what was found for a query.

    Args:
        search: what is asked for.
        query: the query.
        found: admissible demonstrations, nearest first.
        passed: those that are not admissible, and why.
        index: whose vectors the selection compares; None: it compares words.
    """
    chosen = _select(search.selection, query, found[: search.wanted], index, search.k)
    if search.passed_over:
        ranks = {r.rank for r in chosen}
        reason = (
            f"not among the {search.k} nearest" if search.selection == "top_k" else f"{search.selection} chose others"
        )
        passed = [*passed, *(PassedOver(f.retrieved, reason) for f in found if f.retrieved.rank not in ranks)]
        passed.sort(key=lambda one: one.retrieved.rank)
    return Answer(chosen, passed[: search.passed_over])


def _select(name: str, query: Query, found: Sequence[Found], index: LiveIndex | None, k: int) -> list[Retrieved]:
    hits = [f.retrieved for f in found]
    if name == "top_k" or not hits:
        return hits[:k]
    chosen = select(
        name,
        np.array([h.similarity for h in hits], dtype=np.float32),
        k,
        vectors=index.vectors([f.row for f in found]) if index else None,
        labels=[h.demonstration.output for h in hits],
        query_text=query.input,
        candidate_texts=[h.demonstration.input for h in hits],
        tags=[tags_in(h.demonstration.metadata) for h in hits],
    )
    return [hits[i] for i in chosen]
