"""BM25 against the formula in plain loops."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.bm25 import BM25
from udr.types import Demonstration

WORDS = ["joy", "bore", "Film", "the", "plot", "a1", "ü"]
texts = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)


def plain_bm25(documents: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Σ_t ln(1 + (N − df + ½)/(df + ½)) · tf / (tf + k1·(1 − b + b·length/average)); each document holds a mark too."""
    bags = [Counter(re.findall(r"\w+", d.lower())) for d in documents]
    lengths = [bag.total() + 1 for bag in bags]
    average = sum(lengths) / len(lengths)
    scores = [0.0] * len(documents)
    for term in re.findall(r"\w+", query.lower()):
        df = sum(term in bag for bag in bags)
        idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
        for i, bag in enumerate(bags):
            scores[i] += idf * bag[term] / (bag[term] + k1 * (1 - b + b * lengths[i] / average))
    return scores


@given(st.lists(texts, min_size=1, max_size=8), texts, st.integers(1, 10))
def test_scores_and_order_are_those_of_the_formula(documents: list[str], query: str, k: int) -> None:
    pool = [Demonstration(str(i), d, "") for i, d in enumerate(documents)]
    rows, scores = BM25(pool).search([query], k)
    expected = plain_bm25(documents, query)
    k = min(k, len(documents))
    assert rows.shape == scores.shape == (1, k)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    assert len(set(rows[0])) == k
    np.testing.assert_allclose(scores[0], [expected[r] for r in rows[0]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores[0], sorted(expected, reverse=True)[:k], rtol=1e-5, atol=1e-6)


@given(st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=8), texts, st.integers(1, 10))
def test_of_the_admitted_ones_the_best_are_found_however_far_behind(
    documents: list[tuple[str, bool]], query: str, k: int
) -> None:
    bm25 = BM25([Demonstration(str(i), d, "") for i, (d, _) in enumerate(documents)])
    rows, scores = bm25.search([query], k, np.array([own for _, own in documents]))
    whole, all_scores = bm25.search([query], len(documents))
    keep = [i for i, row in enumerate(whole[0]) if documents[row][1]][:k]
    np.testing.assert_array_equal(rows[0], whole[0, keep])
    np.testing.assert_array_equal(scores[0], all_scores[0, keep])


@given(st.lists(texts, min_size=1, max_size=6), st.lists(texts, min_size=1, max_size=4))
def test_a_query_is_answered_alone_as_among_others(documents: list[str], queries: list[str]) -> None:
    bm25 = BM25([Demonstration(str(i), d, "") for i, d in enumerate(documents)])
    together = bm25.search(queries, 3)
    for i, query in enumerate(queries):
        alone = bm25.search([query], 3)
        assert np.array_equal(alone[0][0], together[0][i])
        assert np.array_equal(alone[1][0], together[1][i])


def test_ties_go_to_the_earlier_position() -> None:
    pool = [Demonstration(str(i), text, "") for i, text in enumerate(["bore", "joy film", "joy film", "x", "joy film"])]
    rows, scores = BM25(pool).search(["joy", "nothing known", ""], 5)
    assert rows.tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert scores[0, 0] == scores[0, 1] == scores[0, 2] > 0
    assert not scores[1:].any()


@pytest.mark.parametrize(("field", "best"), [("input", 0), ("output", 1)])
def test_the_field_asked_for_is_searched(field: str, best: int) -> None:
    pool = [Demonstration("1", "joy", "bore"), Demonstration("2", "bore", "joy")]
    rows, _ = BM25(pool, field).search(["joy"], 1)  # type: ignore[arg-type]
    assert rows.tolist() == [[best]]


def test_texts_without_a_word_can_be_indexed_and_searched() -> None:
    rows, scores = BM25([Demonstration("1", "!?", ""), Demonstration("2", "", "")]).search(["?", "joy"], 2)
    assert rows.tolist() == [[0, 1], [0, 1]]
    assert not scores.any()


def test_jax_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('JAX WAS TOUCHED')")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(scores, k): print('JAX WAS TOUCHED')")
    code = """
import sys
from udr.bm25 import BM25
from udr.types import Demonstration
rows, _ = BM25([Demonstration("a", "one", "1"), Demonstration("b", "two", "2")]).search(["two"], 1)
assert rows.tolist() == [[1]], rows
assert "jax" not in sys.modules
print("found")
import jax
"""
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n") == ["found", "JAX WAS TOUCHED", ""]  # what a user imports himself is there
