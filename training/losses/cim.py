"""The losses of corrupted image modelling: a generator of tokens, and an enhancer that restores or detects."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["generator_loss", "normalised_pixels", "replaced_loss", "restored_loss", "window_statistics"]


def generator_loss(logits: Tensor, golden: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy of the masked cells' tokens.

    Source: Fang et al. 2023, "Corrupted Image Modeling for Self-Supervised Visual Pre-Training", arXiv 2202.03382,
    section 3.2.

    Shape: logits (n, s, v), golden and masked (n, s). The result is a scalar in nats.
    """
    return F.cross_entropy(logits[masked], golden[masked])


def normalised_pixels(pictures: Tensor, window: int = 8, eps: float = 1e-6) -> Tensor:
    """Each pixel less the mean of the window about it, over the window's standard deviation; windows overlap.

    Borders are mirrored. A window of even size reaches one pixel further up and left.

    Shape: (n, c, h, w) in and out.
    """
    mean, deviation = window_statistics(pictures, window, eps)
    return (pictures - mean) / deviation


def window_statistics(pictures: Tensor, window: int = 8, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the window about each pixel, both (n, c, h, w)."""
    before, behind = window // 2, (window - 1) // 2
    wide = F.pad(pictures, (before, behind, before, behind), mode="reflect")
    mean = F.avg_pool2d(wide, window, stride=1)
    variance = (F.avg_pool2d(wide**2, window, stride=1) - mean**2).clamp_min(0)
    return mean, (variance + eps).sqrt()


def restored_loss(restored: Tensor, pictures: Tensor, window: int = 8) -> Tensor:
    """ResPix: the mean squared error of the original's normalised pixels (arXiv 2202.03382, section 3.3).

    Shape: both (n, c, h, w). The result is a scalar.
    """
    return F.mse_loss(restored, normalised_pixels(pictures, window))


def replaced_loss(logits: Tensor, sampled: Tensor, golden: Tensor) -> Tensor:
    """RevDet: binary cross-entropy of which tokens were replaced (arXiv 2202.03382, section 3.3).

    A cell whose sampled token is the golden one counts as original, whether it was masked or not.

    Shape: all (n, s). The result is a scalar in nats.
    """
    return F.binary_cross_entropy_with_logits(logits, (sampled != golden).to(logits.dtype))
