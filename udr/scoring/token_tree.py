"""Many prompts in one forward pass: as a token tree, so that text which several begin with is computed once.

Sequences are sorted, shared prefixes are merged, and the tree is cut into rows of a bounded number of nodes. A row is
run as one sequence whose attention mask lets every token see its own ancestors only, and whose positions are depths:
each prompt gets exactly the numbers it would get alone. Requests that share a demonstration, then an input, then the
beginning of a label share that work without anyone declaring groups. Models that cannot be asked so read prompts of
like length side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from udr.types import IntArray

__all__ = ["TokenRow", "pack", "pad", "subtree_ends"]

WORTH_SHARING = 4  # a full row takes in a request with so many times more shared tokens than new ones


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One forward pass: `r` nodes depth first, and the places where a log-probability is read.

    A pass of `r / width` padded prompts holds them one after another; a tree is one sequence, as wide as the row.
    """

    tokens: IntArray  # (r,)
    parents: IntArray  # (r,) row position of the parent, −1 for a root
    depths: IntArray  # (r,) position of the token in its own prompt
    nodes: IntArray  # (s,) row position whose next-token distribution is read
    targets: IntArray  # (s,) the token whose log-probability is wanted
    requests: IntArray  # (s,) which request it counts for
    width: int  # tokens of each sequence


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
    return TokenRow(
        _ints(tokens), _ints(parents), _ints(depths), _ints(nodes), _ints(targets), _ints(requests), len(tokens)
    )


def pad(
    contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], row_tokens: int
) -> Iterator[TokenRow]:
    """Put requests of like length side by side, `row_tokens` tokens or one longer request at a time.

    Shorter ones are filled up behind their end, where a causal model's earlier tokens do not look.
    """
    sizes = [len(a) + len(b) - 1 for a, b in zip(contexts, continuations, strict=True)]
    row: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if row and sizes[row[0]] * (len(row) + 1) > row_tokens:
            yield _side_by_side(row, contexts, continuations)
            row = []
        row.append(i)
    if row:
        yield _side_by_side(row, contexts, continuations)


def _side_by_side(
    row: Sequence[int], contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> TokenRow:
    width = len(contexts[row[0]]) + len(continuations[row[0]]) - 1  # the longest stands first
    tokens = np.zeros((len(row), width), dtype=np.int64)
    nodes: list[int] = []
    targets: list[int] = []
    requests: list[int] = []
    for n, i in enumerate(row):
        start, end = contexts[i], continuations[i]
        tokens[n, : len(start) + len(end) - 1] = [*start, *end[:-1]]
        first = n * width + len(start) - 1
        nodes.extend(range(first, first + len(end)))
        targets.extend(end)
        requests.extend([i] * len(end))
    depths = np.tile(np.arange(width), len(row))
    parents = np.where(depths > 0, np.arange(tokens.size) - 1, -1)
    return TokenRow(tokens.reshape(-1), parents, depths, _ints(nodes), _ints(targets), _ints(requests), width)


def _ints(values: Sequence[int]) -> IntArray:
    return np.array(values, dtype=np.int64)


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
