"""The token tree: every request finds its own tokens, targets and ancestors in it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udr.scoring.token_tree import TokenRow, pack, subtree_ends

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)
requests = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=10)


def path_of(row: TokenRow, node: int) -> list[int]:
    """Row positions from the root to a node."""
    path = [node]
    while row.parents[path[0]] >= 0:
        path.insert(0, int(row.parents[path[0]]))
    return path


@given(requests, st.integers(1, 30))
def test_every_request_reads_its_own_sequence_and_targets_once(
    pairs: list[tuple[list[int], list[int]]], row_tokens: int
) -> None:
    contexts, continuations = [a for a, _ in pairs], [b for _, b in pairs]
    seen: dict[int, list[tuple[list[int], int]]] = {}
    for row in pack(contexts, continuations, row_tokens):
        for node, target, request in zip(row.nodes, row.targets, row.requests, strict=True):
            read = [int(row.tokens[p]) for p in path_of(row, int(node))]
            seen.setdefault(int(request), []).append((read, int(target)))
    assert sorted(seen) == list(range(len(pairs)))
    for i, (context, continuation) in enumerate(pairs):
        whole = context + continuation
        expected = [(whole[:n], whole[n]) for n in range(len(context), len(whole))]
        assert seen[i] == expected


@given(requests, st.integers(1, 30))
def test_depths_are_places_in_the_own_prompt_and_stretches_hold_the_descendants(
    pairs: list[tuple[list[int], list[int]]], row_tokens: int
) -> None:
    for row in pack([a for a, _ in pairs], [b for _, b in pairs], row_tokens):
        ends = subtree_ends(row)
        for node in range(len(row.tokens)):
            path = path_of(row, node)
            assert row.depths[node] == len(path) - 1
            assert [j for j in range(node + 1) if node < ends[j]] == path
        assert (row.parents < np.arange(len(row.tokens))).all()


@given(requests, st.integers(1, 30))
def test_a_row_holds_each_prefix_once_and_keeps_its_bound(
    pairs: list[tuple[list[int], list[int]]], row_tokens: int
) -> None:
    rows = list(pack([a for a, _ in pairs], [b for _, b in pairs], row_tokens))
    for row in rows:
        prefixes = {tuple(row.tokens[path_of(row, n)]) for n in range(len(row.tokens))}
        assert len(prefixes) == len(row.tokens)
        longest = max(len(pairs[i][0]) + len(pairs[i][1]) - 1 for i in row.requests)
        assert len(row.tokens) <= 2 * max(row_tokens, longest)
    wanted = {tuple(a + b[:-1])[:n] for a, b in pairs for n in range(1, len(a + b))}
    if row_tokens >= sum(len(a) + len(b) for a, b in pairs):
        (row,) = rows
        assert len(row.tokens) == len(wanted)


def test_a_demonstration_shared_by_many_queries_is_computed_once() -> None:
    demonstration, labels = list(range(50)), [[7], [8]]
    contexts = [[*demonstration, 100 + q] for q in range(10) for _ in labels]
    (row,) = pack(contexts, labels * 10, 1000)
    assert len(row.tokens) == 50 + 10  # one-token labels need no node of their own
    assert len(row.targets) == 20


def test_the_labels_of_a_prompt_longer_than_a_row_share_it() -> None:
    prompts = [[q, *range(300)] for q in range(5)]
    labels = [[7], [8, 9], [8, 10], [11, 12, 13]]
    rows = list(pack([p for p in prompts for _ in labels], labels * 5, 256))
    assert [len(row.tokens) for row in rows] == [301 + 3] * 5  # 8, 11 and 12: last tokens need no node


def test_no_requests_give_no_rows() -> None:
    assert list(pack([], [], 10)) == []
