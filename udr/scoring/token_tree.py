"""Many prompts as one token tree, so that text which several prompts begin with is computed once.

Sequences are sorted, shared prefixes are merged, and the tree is cut into rows of a bounded number of nodes. A row is
run as one sequence whose attention mask lets every token see its own ancestors only, and whose positions are depths:
each prompt gets exactly the numbers it would get alone. Requests that share a demonstration, then an input, then the
beginning of a label share that work without anyone declaring groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from udr.types import IntArray

__all__ = ["TokenRow", "pack", "subtree_ends"]

WORTH_SHARING = 4  # a full row takes in a request with so many times more shared tokens than new ones


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One forward pass: `r` nodes depth first, and the places where a log-probability is read."""

    tokens: IntArray  # (r,)
    parents: IntArray  # (r,) row position of the parent, −1 for a root
    depths: IntArray  # (r,) position of the token in its own prompt
    nodes: IntArray  # (s,) row position whose next-token distribution is read
    targets: IntArray  # (s,) the token whose log-probability is wanted
    requests: IntArray  # (s,) which request it counts for


def pack(
    contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], row_tokens: int
) -> Iterator[TokenRow]:
    """Cut requests into rows of about `row_tokens` nodes.

    A row grows up to twice that, or to twice a longer request, where cutting would compute far more text again than it
    saves: the labels of one long prompt stay together. Every context and every continuation must hold at least one
    token: the first scored token needs a predecessor.
    """
    sequences = [tuple(a) + tuple(b[:-1]) for a, b in zip(contexts, continuations, strict=True)]
    row: list[int] = []
    size = 0
    previous: tuple[int, ...] = ()
    for i in sorted(range(len(sequences)), key=lambda i: (sequences[i], i)):
        whole = len(sequences[i])
        shared = _common_prefix(previous, sequences[i])
        new = whole - shared
        worth_it = WORTH_SHARING * new <= shared and size + new <= 2 * max(row_tokens, whole)
        if row and size + new > row_tokens and not worth_it:
            yield _build(row, sequences, contexts, continuations)
            row, size, new = [], 0, whole
        row.append(i)
        size += new
        previous = sequences[i]
    if row:
        yield _build(row, sequences, contexts, continuations)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _build(
    row: Sequence[int],
    sequences: Sequence[Sequence[int]],
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
) -> TokenRow:
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    nodes: list[int] = []
    targets: list[int] = []
    requests: list[int] = []
    path: list[int] = []  # row positions from the root to the last node added
    previous: Sequence[int] = ()
    for i in row:
        sequence = sequences[i]
        del path[_common_prefix(previous, sequence) :]
        for depth in range(len(path), len(sequence)):
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(sequence[depth])
            depths.append(depth)
        start = len(contexts[i]) - 1
        nodes.extend(path[start:])
        targets.extend(continuations[i])
        requests.extend([i] * len(continuations[i]))
        previous = sequence
    return TokenRow(*(np.array(v, dtype=np.int64) for v in (tokens, parents, depths, nodes, targets, requests)))


def subtree_ends(row: TokenRow) -> IntArray:
    """One past the last descendant of each node, (r,).

    Nodes stand depth first, so a subtree is one stretch of the row: j is i or above it exactly where j <= i < ends[j].
    """
    ends: IntArray = np.arange(1, len(row.tokens) + 1)
    for node in range(len(ends) - 1, 0, -1):
        parent = row.parents[node]
        if parent >= 0 and ends[parent] < ends[node]:
            ends[parent] = ends[node]
    return ends
