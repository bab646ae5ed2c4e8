"""DRIT++'s losses: content that tells no style, pictures that pass as real, ways there and back, draws that differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "content_loss",
    "content_size",
    "judge_loss",
    "kl_loss",
    "mode_seeking_loss",
    "passing_loss",
    "regression_loss",
    "style_loss",
]

EPSILON = 1e-5  # of mode seeking: pictures that are all the same would cost infinitely much


def style_loss(logits: Sequence[Tensor]) -> Tensor:
    """What the judge of content learns by: its binary cross-entropy on telling the styles, 0 and 1 in this order.

    Shape: of each style logits (n, …). The result is a scalar in nats, the sum of both styles' means.
    """
    losses = [F.binary_cross_entropy_with_logits(x, torch.full_like(x, float(i))) for i, x in enumerate(logits)]
    return torch.stack(losses).sum()


def content_loss(logits: Sequence[Tensor]) -> Tensor:
    """What content encoders learn by: the judge is to find either style as likely, BCE(D_c(z_c), ½).

    Source: Lee et al. 2020, "DRIT++", arXiv 1905.01270, equation 2. Shape: as `style_loss`; the sum of both means.
    """
    return torch.stack([F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.5)) for x in logits]).sum()


def judge_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """What a judge of pictures learns by: real ones are 1 and made ones 0, at each of its scales.

    Shape: of each scale logits (n, …) of real and of made pictures. A scalar in nats, summed over scales.
    """
    losses = [F.binary_cross_entropy_with_logits(x, torch.ones_like(x)) for x in real]
    losses += [F.binary_cross_entropy_with_logits(x, torch.zeros_like(x)) for x in made]
    return torch.stack(losses).sum()


def passing_loss(made: Sequence[Tensor]) -> Tensor:
    """What the generator learns by: pictures that it made are to be called real, at each scale of the judge.

    Shape: of each scale logits (n, …). A scalar in nats, summed over scales.
    """
    return torch.stack([F.binary_cross_entropy_with_logits(x, torch.ones_like(x)) for x in made]).sum()


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """How far an attribute's distribution is from a standard normal one: Σ ½ (μ² + σ² − 1 − log σ²), over numbers.

    Shape: (n, a) each. A scalar in nats, the mean over pictures.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


def content_size(content: Tensor) -> Tensor:
    """The mean square of contents (n, d, h, w), which is to stay small beside the noise that is laid over them."""
    return content.square().mean()


def regression_loss(found: Tensor, drawn: Tensor) -> Tensor:
    """How far the attribute that is read from a made picture is from the one that was drawn for it.

    The mean absolute difference, of (n, a) each.
    """
    return (found - drawn).abs().mean()


def mode_seeking_loss(first: Tensor, second: Tensor, drawn: Tensor, again: Tensor) -> Tensor:
    """Ask for pictures that differ as their attributes do: 1 / (|I₁ − I₂| / |z₁ − z₂| + 10⁻⁵), mean distances.

    Source: Mao et al. 2019, "Mode Seeking Generative Adversarial Networks for Diverse Image Synthesis",
    arXiv 1903.05628, equation 3. The fraction is each picture's own and the loss is their mean: the fraction of a
    batch's means, which is the same for one picture, is satisfied by a few that differ beside many that do not.

    Shape: pictures (n, 3, s, s) of the same contents with attributes `drawn` and `again`, (n, a).
    """
    pictures = (first - second).abs().flatten(1).mean(1)
    attributes = (drawn - again).abs().mean(1)
    return (1 / (pictures / attributes + EPSILON)).mean()
