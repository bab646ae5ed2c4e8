"""Cross-modal code matching: what is said of a picture is made of the codes that the picture is made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["code_distribution", "code_matching", "code_similarities"]

LEAST = 1e-10  # of a probability whose logarithm is taken


def code_distribution(probabilities: Tensor, valid: Tensor) -> Tensor:
    """P(e_v|H), the mean over the places that hold something.

    Shape: probabilities (n, l, v), valid (n, l) -> (n, v).
    """
    weights = valid.to(probabilities.dtype)
    found: Tensor = (probabilities * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
    return found


def code_similarities(a: Tensor, b: Tensor) -> Tensor:
    """S(i,j) = Σ_v a_i(v) log b_j(v) + Σ_v b_j(v) log a_i(v): less the cross-entropies of two distributions.

    Shape: a (n, v), b (m, v) -> (n, m), in nats, at most 0.
    """
    return a @ (b + LEAST).log().T + (a + LEAST).log() @ b.T


def code_matching(a: Tensor, b: Tensor, same: Tensor | None = None) -> Tensor:
    """L = −1/n Σ_i log exp S(i,i) / Σ_j exp S(i,j).

    Source: Liu et al. 2021, "Cross-Modal Discrete Representation Learning", arXiv 2106.05438. The
    largest similarity is taken off before exponents are (by `cross_entropy`). The codes are no parameters, so the
    gradient goes to the encoders alone.

    Args:
        a: distributions of one kind, (n, v).
        b: of the other kind.
        same: (n, n), true where j is no other thing than i: left out of the sum.

    Shape: the result is a scalar in nats.
    """
    logits = code_similarities(a, b)
    if same is not None:
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~own, float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
