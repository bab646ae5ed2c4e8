"""Vector quantisation: features become the nearest of some codes, which follow the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udr.distributed import gather

__all__ = ["Quantizer"]

SMOOTHING = 1e-5  # of counts, so that no code is divided by nothing
LEAST = 0.03  # of the mean use: a code used less is put where features are


class Quantizer(nn.Module):
    """Codes that are the moving averages of the features nearest to them.

    N_v ← γN_v + (1 − γ)n_v, m_v ← γm_v + (1 − γ)Σh, e_v = m_v / N_v (van den Oord et al. 2017, arXiv 1711.00937,
    appendix A.1). The gradient passes straight through; a code that hardly anything is near to is put on a feature of
    the batch.

    Args:
        codes: how many.
        dim: of features.
        decay: γ.
    """

    codebook: Tensor  # (codes, dim)
    counts: Tensor  # (codes,)
    sums: Tensor  # (codes, dim)
    begun: Tensor

    def __init__(self, codes: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.codes, self.decay = codes, decay
        start = torch.randn(codes, dim)
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", start.clone())
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n, l, dim) -> codes in their places, with their gradient; tokens (n, l); commitment, a scalar."""
        flat = features.detach().flatten(0, 1).float()
        if self.training:
            flat = gather(flat)  # codes follow the features of all processes, and stay the same in each
        if self.training and not self.begun:
            self._begin(flat)
        tokens = self.nearest(features)
        codes = self.codebook[tokens]  # as they were when they were chosen
        if self.training:
            self._follow(flat, gather(tokens.flatten()))
        commitment = F.mse_loss(features.float(), codes)
        return features + (codes - features).detach(), tokens, commitment

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """The code nearest to each feature (…, dim), (…)."""
        distances: Tensor = torch.cdist(features.flatten(0, -2).float(), self.codebook)
        return distances.argmin(1).view(features.shape[:-1])

    @torch.no_grad()
    def _begin(self, flat: Tensor) -> None:
        """Put the codes on features, so that all are near to some."""
        self.codebook.copy_(flat[torch.randint(len(flat), (self.codes,), device=flat.device)])
        self.sums.copy_(self.codebook)
        self.begun.fill_(True)

    @torch.no_grad()
    def _follow(self, flat: Tensor, tokens: Tensor) -> None:
        used = torch.zeros_like(self.counts).index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.float32))
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, tokens, flat), 1 - self.decay)
        total = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (total + self.codes * SMOOTHING) * total
        self.codebook.copy_(self.sums / smooth[:, None])
        self._revive(flat, total / self.codes)

    def _revive(self, flat: Tensor, mean_use: Tensor) -> None:
        idle = self.counts < LEAST * mean_use
        chosen = flat[torch.randint(len(flat), (self.codes,), device=flat.device)]
        self.codebook[idle] = chosen[idle]
        self.sums[idle] = chosen[idle] * mean_use
        self.counts[idle] = mean_use
