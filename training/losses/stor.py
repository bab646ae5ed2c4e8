"""STOR's joint loss: two clips agree, and their overlap in time and space, pace and rotation can be told."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["byol_loss", "labels_loss", "weighted"]


def byol_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Ask what is predicted of each view to point where the teacher's other view does.

    2 − 2 cos(p₁, z₂) + 2 − 2 cos(p₂, z₁), the mean over a batch of the sum of both. Source: Grill et al. 2020,
    "Bootstrap Your Own Latent", arXiv 2006.07733, equation 2, made symmetric.

    Shape: four times (n, d), of any length: they are normalised here. The result is a scalar from 0 to 8.
    """
    one = 2 - 2 * F.cosine_similarity(p1, z2.detach())
    other = 2 - 2 * F.cosine_similarity(p2, z1.detach())
    return (one + other).mean()


def labels_loss(logits: list[Tensor], labels: list[Tensor]) -> Tensor:
    """The cross-entropies of one question, summed over the clips that it is asked of; each the mean over a batch.

    Shape: of each logits (n, k) and labels (n,). The result is a scalar in nats.
    """
    losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Σ w·L over the losses that there are. Published: 0.1 for the agreement, 1 for each of the rest."""
    parts = [weights[name] * loss for name, loss in losses.items()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
