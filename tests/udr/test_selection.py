"""Each selection against its formula in plain loops, and what holds for all of them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from udr.errors import ConfigError, DataError, UDRError, UnknownNameError
from udr.selection import (
    ORDERS,
    SELECTIONS,
    balanced,
    balanced_tags,
    coverage,
    dpp,
    mmr,
    order,
    select,
    tags_in,
    top_k,
)

Floats = NDArray[np.float64]


def random_unit(seed: int, k: int, d: int) -> Floats:
    v = np.random.default_rng(seed).normal(size=(k, d))
    unit: Floats = v / np.linalg.norm(v, axis=1, keepdims=True)
    return unit


def mmr_by_loops(relevance: Floats, vectors: Floats, n: int, diversity: float) -> list[int]:
    taken: list[int] = []
    while len(taken) < n:
        best, best_value = -1, -np.inf
        for i in set(range(len(relevance))) - set(taken):
            nearest = max((float(vectors[i] @ vectors[j]) for j in taken), default=0.0)
            value = (1 - diversity) * relevance[i] - diversity * nearest
            if value > best_value:
                best, best_value = i, value
        taken.append(best)
    return taken


def dpp_kernel(relevance: Floats, vectors: Floats, scale: float) -> Floats:
    w = np.exp((1 + relevance) / 2 / (2 * scale))
    kernel: Floats = w[:, None] * (1 + vectors @ vectors.T) / 2 * w
    return kernel


@st.composite
def candidates(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `select` for one query, with ties, copies and zero vectors."""
    k = draw(st.integers(0, 8))
    numbers = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])
    return {
        "relevance": np.array(draw(st.lists(numbers, min_size=k, max_size=k)), dtype=np.float32),
        "n": draw(st.integers(0, 10)),
        "vectors": np.array(
            draw(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=k, max_size=k)), dtype=np.float32
        ).reshape(k, 2),
        "labels": draw(st.lists(st.sampled_from("xyz"), min_size=k, max_size=k)),
        "tags": draw(st.lists(st.sets(st.sampled_from("xyz")), min_size=k, max_size=k)),
        "query_text": "red cubes on tables",
        "candidate_texts": draw(
            st.lists(st.sampled_from(["", "Red cubes", "on the tables", "spheres", "red"]), min_size=k, max_size=k)
        ),
    }


@pytest.mark.parametrize("name", SELECTIONS)
@given(arguments=candidates())
@settings(max_examples=60, deadline=None)
def test_selection_never_repeats_and_gives_n_or_all(name: str, arguments: dict[str, Any]) -> None:
    k = len(arguments["relevance"])
    chosen = select(name, **arguments)
    assert len(chosen) == min(arguments["n"], k)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(k))
    assert all(type(i) is int for i in chosen)
    assert select(name, **arguments) == chosen


@pytest.mark.parametrize("name", SELECTIONS)
@given(arguments=candidates())
@settings(max_examples=30, deadline=None)
def test_smaller_n_is_a_prefix_of_larger_n(name: str, arguments: dict[str, Any]) -> None:
    all_of_them = select(name, **{**arguments, "n": 8})
    assert select(name, **arguments) == all_of_them[: arguments["n"]]


@pytest.mark.parametrize("name", SELECTIONS)
def test_equal_candidates_come_in_their_own_order(name: str) -> None:
    chosen = select(name, np.ones(5), 5, np.ones((5, 3)), list("aaaaa"), "red", ["red"] * 5, ["a"] * 5)
    assert chosen == [0, 1, 2, 3, 4]


def test_top_k_sorts_by_relevance_at_any_scale() -> None:
    relevance = np.array([3.0, -200.0, 1e6, 3.0], dtype=np.float32)
    assert top_k(relevance, 3) == [2, 0, 3]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_mmr_equals_its_formula_in_loops(seed: int, diversity: float) -> None:
    vectors, query = random_unit(seed, 9, 4), random_unit(seed + 100, 1, 4)[0]
    relevance = vectors @ query
    assert mmr(relevance, vectors, 6, diversity) == mmr_by_loops(relevance, vectors, 6, diversity)


def test_mmr_without_diversity_is_top_k_and_with_nothing_else_still_starts_at_the_best() -> None:
    vectors = random_unit(0, 7, 3)
    relevance = vectors @ vectors[4]
    assert mmr(relevance, vectors, 7, 0.0) == top_k(relevance, 7)
    assert mmr(relevance, vectors, 2, 1.0) == [4, int((vectors @ vectors[4]).argmin())]


def test_mmr_passes_over_a_copy() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert mmr([0.9, 0.9, 0.7], vectors, 3) == [0, 2, 1]


@pytest.mark.parametrize("scale", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_dpp_takes_the_largest_determinant_at_every_step(seed: int, scale: float) -> None:
    vectors, query = random_unit(seed, 9, 8), random_unit(seed + 100, 1, 8)[0]
    relevance = vectors @ query
    kernel = dpp_kernel(relevance, vectors, scale)
    chosen = dpp(relevance, vectors, 5, scale)
    for step in range(5):
        sets = {i: [*chosen[:step], i] for i in range(9) if i not in chosen[:step]}
        determinants = {i: float(np.linalg.det(kernel[np.ix_(s, s)])) for i, s in sets.items()}
        assert chosen[step] == max(determinants, key=lambda i: determinants[i])


@pytest.mark.parametrize("seed", range(5))
def test_dpp_comes_near_the_best_of_all_subsets(seed: int) -> None:
    vectors, query = random_unit(seed, 8, 6), random_unit(seed + 100, 1, 6)[0]
    kernel = dpp_kernel(vectors @ query, vectors, 0.1)

    def log_det(subset: tuple[int, ...]) -> float:
        return float(np.linalg.slogdet(kernel[np.ix_(subset, subset)])[1])

    subsets = sorted(log_det(s) for s in itertools.combinations(range(8), 3))
    assert log_det(tuple(dpp(vectors @ query, vectors, 3))) >= subsets[-4]  # 56 subsets; greedy is among the first four


def test_dpp_passes_over_copies_until_nothing_else_is_left() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    assert dpp([0.9, 0.9, 0.1], vectors, 3) == [0, 2, 1]


def test_dpp_scale_moves_between_relevance_and_spread() -> None:
    vectors = np.array([[1.0, 0.0], [0.995, 0.0998], [0.0, 1.0]])
    relevance = vectors @ np.array([1.0, 0.0])
    assert dpp(relevance, vectors, 2, scale=0.01) == [0, 1]
    assert dpp(relevance, vectors, 2, scale=1.0) == [0, 2]


def test_dpp_does_not_overflow_on_large_weights() -> None:
    vectors = random_unit(1, 6, 4)
    relevance = np.array([5.0, 9000.0, 100.0, -8000.0, 0.0, 8999.0])
    assert dpp(relevance, vectors, 6, scale=0.001) == top_k(relevance, 6)


@pytest.mark.parametrize("name", ["mmr", "dpp"])
def test_longer_vectors_of_the_encoder_change_nothing(name: str) -> None:
    vectors, query = np.random.default_rng(3).normal(size=(12, 5)), np.random.default_rng(4).normal(size=5)
    chosen = select(name, vectors @ query, 6, vectors)
    assert chosen != top_k(vectors @ query, 6)
    assert select(name, (50 * vectors) @ (50 * query), 6, 50 * vectors) == chosen


def test_coverage_takes_most_open_words_then_starts_again() -> None:
    query = set("abcdef")
    texts = [set("abc"), set("ab"), set("de"), set("xyz"), set("f"), set("ad")]
    # 0 opens with 3 words, 2 adds d e, 4 adds f; then all are open: 1 and 5 have two each (5 more relevant); 3 none
    assert coverage([0.1, 0.2, 0.1, 0.9, 0.1, 0.3], query, texts, 6) == [0, 2, 4, 5, 1, 3]


def test_coverage_that_started_again_still_counts_open_words_only() -> None:
    #  0 covers all; 1 starts again with a b; then c is open, so 3 goes before the more relevant 2
    assert coverage([0.9, 0.8, 0.7, 0.1], set("abc"), [set("abc"), set("ab"), {"a"}, {"c"}], 4) == [0, 1, 3, 2]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.sampled_from("abcdx"))), max_size=7),
    st.sets(st.sampled_from("abcde")),
)
def test_coverage_equals_greedy_cover_in_loops(rows: list[tuple[int, set[str]]], query: set[str]) -> None:
    left, taken, covered = list(range(len(rows))), [], set[str]()

    def gain(i: int) -> tuple[int, int, int]:
        return len((rows[i][1] & query) - covered), rows[i][0], -i

    while left:
        if max(gain(i)[0] for i in left) == 0:
            covered = set()
        best = max(left, key=gain)
        covered |= rows[best][1]
        left.remove(best)
        taken.append(best)
    assert coverage([float(r) for r, _ in rows], query, [t for _, t in rows], len(rows)) == taken


def test_coverage_by_name_reads_words_without_case_or_punctuation() -> None:
    assert select("coverage", [0.1, 0.9], 1, query_text="Red CUBES?", candidate_texts=["(red) cubes!", "redcubes"]) == [
        0
    ]


def test_balanced_gives_each_label_its_turn() -> None:
    labels = ["a", "a", "a", "b", "b", "c"]
    assert balanced([0.9, 0.8, 0.7, 0.2, 0.6, 0.1], labels, 6) == [0, 4, 5, 1, 3, 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), max_size=12), st.integers(0, 12))
def test_balanced_counts_differ_by_at_most_one_while_supplies_last(rows: list[tuple[int, str]], n: int) -> None:
    labels = [label for _, label in rows]
    chosen = balanced([float(r) for r, _ in rows], labels, n)
    counts, supply = Counter(labels[i] for i in chosen), Counter(labels)
    for label in supply:
        if counts[label] < supply[label]:
            assert counts[label] >= max(counts.values(), default=0) - 1
        mine = sorted((i for i, other in enumerate(labels) if other == label), key=lambda i: (-rows[i][0], i))
        assert [i for i in chosen if labels[i] == label] == mine[: counts[label]]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), max_size=12), st.integers(0, 12))
def test_balanced_tags_is_balanced_where_each_has_one_tag(rows: list[tuple[int, str]], n: int) -> None:
    relevance, labels = [float(r) for r, _ in rows], [label for _, label in rows]
    assert balanced_tags(relevance, [{label} for label in labels], n) == balanced(relevance, labels, n)


def test_balanced_tags_takes_what_was_shown_least_though_it_comes_with_more() -> None:
    tags = [{"cat"}, {"cat", "dog"}, {"cat"}, set(), {"cat", "bird"}]
    assert balanced_tags([0.9, 0.8, 0.7, 0.2, 0.1], tags, 5) == [0, 1, 3, 4, 2]
    with pytest.raises(ConfigError, match="needs the candidates' tags"):
        select("balanced_tags", [0.5], 1)
    assert tags_in({"label:cat": "0.9", "lang": "en", "label:dog": "0.2"}) == ("cat", "dog")


def test_ascending_puts_the_best_last_and_descending_first() -> None:
    assert order([4, 2, 7]) == [7, 2, 4]
    assert order([4, 2, 7], how="descending") == [4, 2, 7]


def test_random_order_follows_the_seed() -> None:
    positions = list(range(20))
    shuffled = order(positions, how="random", seed=1)
    assert shuffled == order(positions, how="random", seed=1) != order(positions, how="random", seed=2)
    assert sorted(shuffled) == positions != shuffled


@pytest.mark.parametrize("how", ORDERS)
@given(positions=st.permutations(range(6)), n=st.integers(0, 6))
@settings(max_examples=20)
def test_order_keeps_what_it_was_given(how: str, positions: list[int], n: int) -> None:
    given_ = tuple(positions[:n])
    result = order(given_, list("aabbcc"), how)
    assert sorted(result) == sorted(given_)
    assert all(type(p) is int for p in result)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_interleaved_has_as_few_equal_neighbours_as_any_order_with_the_best_last(labels: list[str]) -> None:
    def clashes(positions: tuple[int, ...]) -> int:
        return sum(labels[p] == labels[q] for p, q in itertools.pairwise(positions))

    result = order(range(len(labels)), labels, "interleaved")
    assert result[-1] == 0
    assert clashes(tuple(result)) == min(clashes(p) for p in itertools.permutations(range(len(labels))) if p[-1] == 0)


def test_interleaved_reads_labels_of_candidates_and_stays_ascending_within_a_label() -> None:
    assert order([3, 1, 0, 5], ["n", "y", "-", "y", "-", "n"], "interleaved") == [5, 1, 0, 3]


def test_interleaved_prefers_the_better_while_no_label_has_to_be_hurried() -> None:
    assert order([0, 1, 2, 3, 4], ["a", "b", "c", "c", "d"], "interleaved") == [3, 4, 2, 1, 0]


def test_unknown_names_list_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="balanced"):
        select("balance", [1.0], 1)
    with pytest.raises(UnknownNameError, match="ascending"):
        order([0], how="ascendin")


@pytest.mark.parametrize("name", ["mmr", "dpp", "balanced", "coverage"])
def test_selection_says_what_it_lacks(name: str) -> None:
    with pytest.raises(ConfigError):
        select(name, [1.0, 2.0], 1)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: top_k([[1.0]], 1), ConfigError),
        (lambda: top_k([1.0], -1), ConfigError),
        (lambda: top_k([float("nan")], 1), DataError),
        (lambda: mmr([1.0], [[1.0]], 1, diversity=1.5), ConfigError),
        (lambda: mmr([1.0], [1.0], 1), ConfigError),
        (lambda: mmr([1.0], [[float("inf")]], 1), DataError),
        (lambda: dpp([1.0, 2.0], [[1.0]], 1), ConfigError),
        (lambda: dpp([1.0], [[1.0]], 1, scale=0.0), ConfigError),
        (lambda: balanced([1.0], ["a", "b"], 1), ConfigError),
        (lambda: coverage([1.0], set(), [], 1), ConfigError),
        (lambda: order([0, 1], ["a"], "interleaved"), ConfigError),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[UDRError]) -> None:
    with pytest.raises(error):
        call()
