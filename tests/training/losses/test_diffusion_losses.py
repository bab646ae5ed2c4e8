"""Velocities of a diffusion process against plain loops, and what follows from them."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses.diffusion import noised, velocity, velocity_loss


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2), torch.rand(3)


def test_noise_and_velocities_are_those_of_plain_loops() -> None:
    latents, noise, kept = drawn()
    x_t, v = noised(latents, noise, kept), velocity(latents, noise, kept)
    for i in range(3):
        a, s = math.sqrt(kept[i]), math.sqrt(1 - kept[i])
        for x, e, found, moved in zip(
            latents[i].flatten(), noise[i].flatten(), x_t[i].flatten(), v[i].flatten(), strict=True
        ):
            assert found.item() == pytest.approx(a * x.item() + s * e.item(), abs=1e-6)
            assert moved.item() == pytest.approx(a * e.item() - s * x.item(), abs=1e-6)


def test_a_picture_and_its_noise_come_back_from_the_velocity() -> None:
    latents, noise, kept = drawn(1)
    x_t, v, share = noised(latents, noise, kept), velocity(latents, noise, kept), kept.view(-1, 1, 1, 1)
    torch.testing.assert_close(share.sqrt() * x_t - (1 - share).sqrt() * v, latents)
    torch.testing.assert_close((1 - share).sqrt() * x_t + share.sqrt() * v, noise)


def test_the_loss_is_the_mean_square_error_and_0_for_the_right_velocity() -> None:
    latents, noise, kept = drawn(2)
    right = velocity(latents, noise, kept)
    assert velocity_loss(right, latents, noise, kept) == 0
    wrong = torch.randn(right.shape)
    expected = sum((a - b) ** 2 for a, b in zip(wrong.flatten().tolist(), right.flatten().tolist(), strict=True))
    assert velocity_loss(wrong, latents, noise, kept).item() == pytest.approx(expected / right.numel(), rel=1e-5)
