"""Scores of sets of labels against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.label_metrics import label_scores, top_labels


def in_loops(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    precisions, recalls = [], []
    right = said = true = 0
    for c in range(truth.shape[1]):
        r = sum(bool(found[i, c] and truth[i, c]) for i in range(len(truth)))
        s, t = sum(map(bool, found[:, c])), sum(map(bool, truth[:, c]))
        right, said, true = right + r, said + s, true + t
        if t:
            precisions.append(r / s if s else 0.0)
            recalls.append(r / t)
    cp = sum(precisions) / len(precisions) if precisions else 0.0
    cr = sum(recalls) / len(recalls) if recalls else 0.0
    op, or_ = right / said if said else 0.0, right / true if true else 0.0

    def f1(p: float, r: float) -> float:
        return 2 * p * r / (p + r) if p + r else 0.0

    return {"CP": cp, "CR": cr, "CF1": f1(cp, cr), "OP": op, "OR": or_, "OF1": f1(op, or_)}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_scores_are_those_of_plain_loops(seed: int, much: float, true: float) -> None:
    rng = np.random.default_rng(seed)
    found, truth = rng.random((9, 5)) < much, rng.random((9, 5)) < true
    assert label_scores(found, truth) == pytest.approx(in_loops(found, truth))


def test_the_truth_itself_scores_one_and_nothing_scores_zero() -> None:
    truth = np.array([[True, False, True], [False, False, True]])
    assert set(label_scores(truth, truth).values()) == {1.0}
    assert set(label_scores(np.zeros_like(truth), truth).values()) == {0.0}


def test_the_top_labels_are_k_of_each_thing_and_none_without_a_score() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.5], [0.0, 0.0, 0.2, 0.0]])
    assert top_labels(scores, 2).tolist() == [[False, True, True, False], [False, False, True, False]]
    assert int(top_labels(scores, 9).sum()) == 5
