"""Masked margin softmax: what is said of a picture is nearer to it than what is said of others, by a margin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["margin_at", "mms"]


def margin_at(step: float, first: float = 0.001, growth: float = 1.002) -> float:
    """M = first · growth^(step / 1000), the margin's schedule (Ilharco et al. 2019)."""
    return float(first * growth ** (step / 1000))


def mms(similarities: Tensor, margin: float = 0.001, same: Tensor | None = None) -> Tensor:
    """Ask each thing of one kind to be nearer to its own of the other kind than to the others', in both directions.

    −log exp(S_ii − M) / (exp(S_ii − M) + Σ_{j≠i} exp S_ij), the mean over a batch, summed over rows and columns; with
    M = 0 it is InfoNCE. Source: Ilharco, Zhang and Baldridge 2019, "Large-scale representation learning from visually
    grounded untranscribed speech", arXiv 1909.08782.

    Args:
        similarities: S (n, n), scaled as they are to be.
        margin: M.
        same: (n, n), true where j is no other thing than i (two things of one caption): left out of the sum.

    Shape: the result is a scalar in nats.
    """
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    logits = similarities - margin * own
    if same is not None:
        logits = logits.masked_fill(same & ~own, float("-inf"))
    labels = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
