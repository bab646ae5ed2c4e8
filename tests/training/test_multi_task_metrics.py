"""Measures of many tasks against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.multi_task_metrics import THRESHOLDS, Confusion, Depths, Overlap, delta_mtl
from udr.errors import DataError

RNG = np.random.default_rng(0)


def test_mean_iou_is_over_classes_and_all_pixels() -> None:
    said, true = RNG.integers(0, 4, (5, 6, 6)), RNG.integers(0, 4, (5, 6, 6)).astype(np.uint8)
    true[0, :3] = 255
    counter = Confusion(6)  # two classes that nobody has or says
    counter.add(said[:2], true[:2])
    counter.add(said[2:], true[2:])
    shares = []
    for c in range(4):
        pairs = [(s, t) for s, t in zip(said.ravel(), true.ravel(), strict=True) if t != 255]
        both = sum(s == c and t == c for s, t in pairs)
        shares.append(both / sum(s == c or t == c for s, t in pairs))
    assert counter.read()["miou"] == pytest.approx(sum(shares) / 4)


def test_depth_errors_are_over_known_pixels() -> None:
    said, true = RNG.uniform(0, 1, (4, 3, 3)).astype(np.float32), RNG.uniform(0.2, 1, (4, 3, 3)).astype(np.float32)
    true[1] = 0
    counter = Depths()
    counter.add(said[:2], true[:2])
    counter.add(said[2:], true[2:])
    pairs = [(float(s), float(t)) for s, t in zip(said.ravel(), true.ravel(), strict=True) if t > 0]
    assert counter.read()["rmse"] == pytest.approx(math.sqrt(sum((s - t) ** 2 for s, t in pairs) / len(pairs)))
    assert counter.read()["abs_rel"] == pytest.approx(sum(abs(s - t) / t for s, t in pairs) / len(pairs))


@pytest.mark.parametrize("beta2", [1.0, 0.3])
def test_best_f_is_over_thresholds_that_all_pictures_share(beta2: float) -> None:
    said, true = RNG.uniform(0, 1, (6, 5, 5)).astype(np.float32), (RNG.uniform(0, 1, (6, 5, 5)) < 0.3).astype(np.uint8)
    said = np.where(true > 0, said**0.5, said).astype(np.float32)
    counter = Overlap(beta2)
    counter.add(said[:1], true[:1])
    counter.add(said[1:], true[1:])
    best = 0.0
    for threshold in THRESHOLDS:
        marked = said >= threshold
        hits = (marked & (true > 0)).sum()
        if hits:
            precision, recall = hits / marked.sum(), hits / true.sum()
            best = max(best, (1 + beta2) * precision * recall / (beta2 * precision + recall))
    assert counter.read()["f"] == pytest.approx(best)
    nats = [-math.log(s if t else 1 - s) for s, t in zip(said.ravel().tolist(), true.ravel().tolist(), strict=True)]
    assert counter.read()["bce"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_nothing_found_is_no_overlap() -> None:
    counter = Overlap()
    counter.add(np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.uint8))
    assert counter.read()["f"] == 0


def test_delta_counts_less_error_as_gain() -> None:
    alone = {"semseg": 0.5, "depth": 0.2, "edges": 0.4}
    together = {"semseg": (0.55, False), "depth": (0.22, True), "edges": (0.4, False)}
    assert delta_mtl(together, alone) == pytest.approx((0.1 - 0.1 + 0) / 3)
    better = {"semseg": (0.55, False), "depth": (0.18, True), "edges": (0.44, False)}
    assert delta_mtl(better, alone) == pytest.approx(0.1)
    with pytest.raises(DataError, match="depth: learnt alone, the measure is 0"):
        delta_mtl(together, {**alone, "depth": 0.0})


def test_pixels_of_a_class_that_was_never_learnt_are_missed() -> None:
    confusion = Confusion(2)
    confusion.add(np.array([[[0, 0, 1, 1]]]), np.array([[[0, 3, 1, 1]]], np.uint8))
    assert confusion.read()["miou"] == pytest.approx((1 / 2 + 1) / 2)  # said 0 twice, once in truth
