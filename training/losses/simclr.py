"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["nt_xent"]


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """Ask each view to be nearer to its picture's other view than to any other view of the batch.

    Normalised-temperature cross-entropy, −log exp(a_i·b_i/T) / Σ_{v≠a_i} exp(a_i·v/T) over all 2n − 1 other views v, in
    both directions; the mean over a batch, summed over the directions, as in the authors' code (twice the paper's mean
    over 2n views). Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
    arXiv 2002.05709, equation 1.

    Shape: a and b (n, d), of any length: they are normalised here. The result is a scalar.
    """
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    labels = torch.arange(len(a), device=a.device)
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    across = a @ b.T / temperature  # (n, n)
    within_a = (a @ a.T / temperature).masked_fill(itself, float("-inf"))
    within_b = (b @ b.T / temperature).masked_fill(itself, float("-inf"))
    from_a = F.cross_entropy(torch.cat([across, within_a], 1), labels)
    from_b = F.cross_entropy(torch.cat([across.T, within_b], 1), labels)
    return from_a + from_b
