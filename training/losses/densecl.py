"""The losses of DenseCL: a picture's views against a queue, and each of its cells against another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dense_info_nce", "info_nce", "match_cells"]


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Ask each query to be nearer to its own key than to the keys of the queue.

    −log exp(q·k/T) / (exp(q·k/T) + Σ_n exp(q·n/T)), the mean over queries. Source: He et al. 2020, "Momentum Contrast",
    arXiv 1911.05722, equation 1.

    Shape: queries and keys (n, d), queue (m, d), all of length 1. The result is a scalar.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


def match_cells(queries: Tensor, keys: Tensor) -> Tensor:
    """For each cell of one view, the cell of the other view whose backbone features are most alike.

    Source: Wang et al. 2021, "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", arXiv 2011.09157,
    equation 3. No gradient passes.

    Shape: queries (n, c, s), keys (n, c, t); the result is (n, s), places in 0..t-1.
    """
    with torch.no_grad():
        likeness = torch.einsum("ncs,nct->nst", F.normalize(queries, dim=1), F.normalize(keys, dim=1))
        return likeness.argmax(2)


def dense_info_nce(queries: Tensor, keys: Tensor, matched: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE of every cell, whose key is the cell that it was matched with; the mean over cells and pictures.

    Source: Wang et al. 2021, arXiv 2011.09157, equation 2.

    Shape: queries (n, d, s), keys (n, d, t), matched (n, s), queue (m, d), all of length 1 over d. The result is a
    scalar.
    """
    own = keys.gather(2, matched[:, None].expand(-1, keys.shape[1], -1))  # (n, d, s)
    return info_nce(queries.transpose(1, 2).flatten(0, 1), own.transpose(1, 2).flatten(0, 1), queue, temperature)
