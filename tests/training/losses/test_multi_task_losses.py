"""Losses of dense tasks and attributes are their formulas in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses.multi_task import POSITIVE, UNKNOWN, attribute_loss, balanced_bce, dense_loss


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_balanced_cross_entropy_is_its_formula_pixel_by_pixel() -> None:
    logits, target = 3 * seeded(2, 3, 4), (seeded(2, 3, 4) > 0.5).float()
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= 0.8 * y * math.log(p) + 0.2 * (1 - y) * math.log(1 - p)
    assert balanced_bce(logits, target, 0.8).item() == pytest.approx(total / 24, rel=1e-5)


def test_classes_that_are_unknown_count_for_nothing() -> None:
    logits = seeded(2, 3, 2, 2).requires_grad_()
    target = torch.tensor([[[0, 1], [2, UNKNOWN]], [[UNKNOWN, 1], [0, 0]]], dtype=torch.uint8)
    total, count = 0.0, 0
    for n in range(2):
        for y in range(2):
            for x in range(2):
                if target[n, y, x] != UNKNOWN:
                    own = logits[n, :, y, x].tolist()
                    total -= own[int(target[n, y, x])] - math.log(sum(math.exp(v) for v in own))
                    count += 1
    loss = dense_loss("segmentation", logits, target)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 1, 1].abs().sum() == 0
    assert dense_loss("segmentation", logits, torch.full_like(target, UNKNOWN)).item() == 0


def test_depths_are_as_far_off_as_their_mean_says_where_they_are_known() -> None:
    logits, target = seeded(1, 1, 2, 3), torch.tensor([[[0.5, 0.0, 0.25], [1.0, 0.0, 0.75]]]).half()
    known = [(0, 0), (0, 2), (1, 0), (1, 2)]
    expected = sum(abs(logits[0, 0, y, x].item() - target[0, y, x].item()) for y, x in known) / 4
    assert dense_loss("depth", logits, target).item() == pytest.approx(expected, rel=1e-5)
    assert dense_loss("depth", logits, torch.zeros_like(target)).item() == 0


@pytest.mark.parametrize("kind", ["edges", "saliency"])
def test_edges_and_saliency_are_balanced_as_stated(kind: str) -> None:
    logits, target = seeded(2, 1, 3, 3), (seeded(2, 3, 3) > 0).to(torch.uint8)
    expected = balanced_bce(logits[:, 0], target.float(), POSITIVE[kind])
    assert dense_loss(kind, logits, target).item() == pytest.approx(expected.item())  # type: ignore[arg-type]


def test_an_attribute_that_is_not_known_is_not_learnt() -> None:
    logits, classes = seeded(3, 4), torch.tensor([2, -1, 0])
    total = sum(logits[i].logsumexp(0) - logits[i, c] for i, c in ((0, 2), (2, 0)))
    assert attribute_loss(logits, classes).item() == pytest.approx(float(total) / 2, rel=1e-5)
    assert attribute_loss(logits, torch.full((3,), -1)).item() == 0
