"""Velocities of a diffusion process: what a noisy picture moves along, between noise and picture."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["noised", "velocity", "velocity_loss"]


def noised(latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """x_t = √ᾱ_t · x + √(1 − ᾱ_t) · ε, of latents and noise (n, …) with ᾱ_t as `kept` (n,).

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equation 4.
    """
    share = kept.view(-1, *[1] * (latents.dim() - 1))
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """v = √ᾱ_t · ε − √(1 − ᾱ_t) · x, (n, …).

    Source: Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512,
    section 3. At much noise it is the picture that is asked for, at little the noise.
    """
    share = kept.view(-1, *[1] * (latents.dim() - 1))
    return share.sqrt() * noise - (1 - share).sqrt() * latents


def velocity_loss(predicted: Tensor, latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """The mean square of the error of predicted velocities (n, …)."""
    return F.mse_loss(predicted, velocity(latents, noise, kept))
