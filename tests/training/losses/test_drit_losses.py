"""DRIT++'s losses against the formulas in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses import drit


def bce(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def mean_bce(logits: Tensor, target: float) -> float:
    values = [bce(x, target) for x in logits.flatten().tolist()]
    return sum(values) / len(values)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_judge_of_contents_learns_to_tell_styles_and_encoders_to_leave_it_undecided() -> None:
    first, second = drawn(5, 1), drawn(4, 1)
    assert drit.style_loss([first, second]).item() == pytest.approx(mean_bce(first, 0) + mean_bce(second, 1), rel=1e-5)
    assert drit.content_loss([first, second]).item() == pytest.approx(
        mean_bce(first, 0.5) + mean_bce(second, 0.5), rel=1e-5
    )
    undecided = drit.content_loss([torch.zeros(3, 1), torch.zeros(2, 1)]).item()
    assert undecided == pytest.approx(2 * math.log(2))  # which nothing is below
    assert drit.content_loss([first, second]).item() > undecided


def test_judges_of_pictures_and_what_is_to_pass_them_are_summed_over_scales() -> None:
    real, made = [drawn(3, 1, 4, 4), drawn(3, 1, 2, 2)], [drawn(2, 1, 4, 4), drawn(2, 1, 2, 2)]
    by_hand = sum(mean_bce(x, 1) for x in real) + sum(mean_bce(x, 0) for x in made)
    assert drit.judge_loss(real, made).item() == pytest.approx(by_hand, rel=1e-5)
    assert drit.passing_loss(made).item() == pytest.approx(sum(mean_bce(x, 1) for x in made), rel=1e-5)


def test_kl_is_summed_over_numbers_and_that_of_torch_distributions() -> None:
    mean, log_variance = drawn(6, 8), drawn(8, 6).T
    total = 0.0
    for i in range(6):
        for j in range(8):
            m, v = mean[i, j].item(), log_variance[i, j].item()
            total += 0.5 * (m * m + math.exp(v) - 1 - v) / 6
    assert drit.kl_loss(mean, log_variance).item() == pytest.approx(total, rel=1e-5)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    second = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(drit.kl_loss(mean, log_variance), second)
    assert drit.kl_loss(torch.zeros(2, 8), torch.zeros(2, 8)).item() == 0


def test_sizes_and_distances_are_means_over_all_numbers() -> None:
    content, found, asked = drawn(2, 3, 2, 2), drawn(4, 8), drawn(8, 4).T
    squares = [x * x for x in content.flatten().tolist()]
    assert drit.content_size(content).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    off = [abs(a - b) for a, b in zip(found.flatten().tolist(), asked.flatten().tolist(), strict=True)]
    assert drit.regression_loss(found, asked).item() == pytest.approx(sum(off) / len(off), rel=1e-5)


def test_mode_seeking_is_each_pictures_own_fraction() -> None:
    first, second = drawn(3, 3, 4, 4), drawn(3, 4, 4, 3).permute(0, 3, 1, 2)
    z1, z2 = drawn(3, 8), drawn(8, 3).T
    total = 0.0
    for i in range(3):
        pictures = [abs(a - b) for a, b in zip(first[i].flatten(), second[i].flatten(), strict=True)]
        attributes = [abs(a - b) for a, b in zip(z1[i], z2[i], strict=True)]
        fraction = (sum(pictures) / len(pictures)) / (sum(attributes) / len(attributes))
        total += float(1 / (fraction + 1e-5)) / 3
    assert drit.mode_seeking_loss(first, second, z1, z2).item() == pytest.approx(total, rel=1e-4)


def test_mode_seeking_sees_one_picture_that_collapsed_beside_others_that_differ() -> None:
    """The trap of larger halves: a fraction of the batch's means hardly moves when one picture no longer differs."""
    z1, z2 = torch.zeros(4, 8), torch.ones(4, 8)
    first, second = torch.zeros(4, 3, 4, 4), torch.ones(4, 3, 4, 4)
    whole = drit.mode_seeking_loss(first, second, z1, z2).item()
    second[0] = 0
    collapsed = drit.mode_seeking_loss(first, second, z1, z2).item()
    of_means = 1 / (F.l1_loss(first, second) / F.l1_loss(z1, z2) + 1e-5).item()
    assert whole == pytest.approx(1, rel=1e-4)
    assert of_means < 1.5 < 20_000 < collapsed


def test_one_picture_that_does_not_differ_has_a_gradient_that_is_finite() -> None:
    same = torch.zeros(1, 3, 4, 4, requires_grad=True)
    drit.mode_seeking_loss(same, torch.zeros(1, 3, 4, 4), torch.zeros(1, 8), torch.ones(1, 8)).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()
