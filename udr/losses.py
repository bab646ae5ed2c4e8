"""List-wise and contrastive losses of retrievers learned from LM feedback; pure functions of tensors."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

__all__ = ["PairWeight", "epr_loss", "in_batch_loss", "rank_loss", "udr_loss"]

PairWeight = Literal["lm_rank", "predicted_position"]


def rank_loss(sims: Tensor, ranks: Tensor, pair_weight: PairWeight = "lm_rank") -> Tensor:
    """Ask the better demonstration of each pair to be the more similar one, most of all near the top.

    Σ_{i,j} max(0, 1/r_i − 1/r_j) · log(1 + exp(sim_j − sim_i)), summed over a list, averaged over the batch.
    Source: Li et al. 2023, "Unified Demonstration Retriever for In-Context Learning", arXiv 2305.04320, equation 5.
    `predicted_position` is the authors' released code: weights |1/p_i − 1/p_j| with p the position by similarity,
    and the mean over the pairs that the LM prefers.

    Shape: sims (b, l) any real dtype, ranks (b, l) with 1 = best and 0 = no candidate (a list shorter than l); the
    result is a scalar.
    """
    real = ranks > 0
    better = (ranks[:, :, None] < ranks[:, None, :]) & real[:, :, None]  # (b, i, j): the LM prefers i to j
    margin = F.softplus(sims[:, None, :] - sims[:, :, None])  # log(1 + exp(sim_j − sim_i))
    if pair_weight == "predicted_position":
        by_similarity = sims.masked_fill(~real, float("-inf")).argsort(dim=1, descending=True)
        position = by_similarity.argsort(dim=1).to(sims.dtype) + 1
        weight = (1 / position[:, :, None] - 1 / position[:, None, :]).abs() * better
        return ((weight * margin).sum((1, 2)) / better.sum((1, 2)).clamp(min=1)).mean()
    share = 1 / ranks.clamp(min=1).to(sims.dtype)
    weight = (share[:, :, None] - share[:, None, :]).clamp(min=0) * better
    return (weight * margin).sum((1, 2)).mean()


def in_batch_loss(sims: Tensor, best: Tensor, masked: Tensor) -> Tensor:
    """−log softmax of each query's best candidate against all candidates of the batch.

    Source: Li et al. 2023, arXiv 2305.04320, equation 6. `masked` hides false negatives: the query itself and texts
    equal to its own gold demonstration.

    Shape: sims (b, u) over the u distinct candidates of the batch, best (b,) columns, masked (b, u) bool.
    """
    hidden = masked.scatter(1, best[:, None], False)
    return F.cross_entropy(sims.masked_fill(hidden, float("-inf")), best)


def udr_loss(
    sims: Tensor, own: Tensor, ranks: Tensor, masked: Tensor, weight: float = 0.8, pair_weight: PairWeight = "lm_rank"
) -> Tensor:
    """`weight` · L_rank + (1 − weight) · L_ib (Li et al. 2023, arXiv 2305.04320, equation 7, weight 0.8).

    Shape: sims (b, u), own (b, l) the columns of each query's own candidates, ranks (b, l) with 0 = no candidate
    (any column stands there), masked (b, u) bool.
    """
    best = own.gather(1, (ranks == 1).int().argmax(1, keepdim=True))[:, 0]
    total = (1 - weight) * in_batch_loss(sims, best, masked)
    if weight:
        total = total + weight * rank_loss(sims.gather(1, own), ranks, pair_weight)
    return total


def epr_loss(sims: Tensor, positive: Tensor, masked: Tensor) -> Tensor:
    """Contrastive loss of one positive against its hard negative and the other queries' candidates.

    Source: Rubin et al. 2022, "Learning To Retrieve Prompts for In-Context Learning", arXiv 2112.08633, equation 4.

    Shape: sims (b, u), positive (b,) columns, masked (b, u) bool.
    """
    return in_batch_loss(sims, positive, masked)
