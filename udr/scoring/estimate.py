"""What a task's feedback will cost, before it is paid: pairs, requests, tokens, and a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from udr.scoring.cache import CachedScorer
from udr.scoring.feedback import Pair, Shortcut, requests_of, score_pairs
from udr.tasks.spec import TaskSpec

__all__ = ["Estimate", "estimate"]

SAMPLED = 8  # calls' worth of pairs that are looked at
TIMED = 64  # pairs of two of them that are scored, to learn the speed


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of one task's lists."""

    pairs: int
    requests: int  # texts that want a log-probability
    known: int  # of them that the cache holds
    tokens: int  # that the LM will compute for the others
    seconds: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.pairs + other.pairs,
            self.requests + other.requests,
            self.known + other.known,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )


def estimate(
    spec: TaskSpec, scorer: CachedScorer, pairs: Sequence[Pair], gold_only: bool = False, shortcut: Shortcut = "none"
) -> Estimate:
    """Look at some calls' worth of the pairs, as they will be visited, and score few of those to learn the speed.

    What is scored here stays in the cache and is not paid again. Halving is counted as if its second stage asked a
    random half.
    """
    size = scorer.prompts_per_call
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0].id, pairs[i][1].id))
    starts = np.unique(np.linspace(0, max(0, len(order) - size), SAMPLED).astype(int)).tolist() if order else []
    chunks = [[pairs[i] for i in order[start : start + size]] for start in starts]
    seen = sum(map(len, chunks))
    requests = known = tokens = 0
    fresh: list[tuple[int, list[Pair]]] = []
    for chunk in chunks:
        contexts, continuations = requests_of(spec, scorer, chunk, gold_only, shortcut)
        missing = len(scorer.missing(contexts, continuations))
        wanted = scorer.count_tokens(contexts, continuations)
        requests, known, tokens = requests + len(contexts), known + len(contexts) - missing, tokens + wanted
        fresh.append((wanted, chunk))
    computed, seconds = 0, 0.0
    for wanted, chunk in sorted(fresh, key=lambda one: -one[0])[:2]:
        if wanted:
            before, started = scorer.tokens_computed, time.monotonic()
            score_pairs(spec, scorer, chunk[:TIMED], gold_only=gold_only, shortcut=shortcut)
            seconds += time.monotonic() - started
            computed += scorer.tokens_computed - before
    scale = len(pairs) / seen if seen else 0.0
    left = round(tokens * scale)
    return Estimate(
        len(pairs), round(requests * scale), round(known * scale), left, left * seconds / computed if computed else 0.0
    )
