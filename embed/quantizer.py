"""Vector quantisation: features become the nearest of some codes, which follow the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udr.distributed import gather

__all__ = ["Quantised", "Quantizer"]

SMOOTHING = 1e-5  # of counts, so that no code is divided by nothing
LEAST = 0.03  # of the mean use: a code used less is put where features are
NOISE = 0.01  # of a code that is copied, as a share of the codes' spread


class Quantised(NamedTuple):
    """Features (n, l, dim) as codes."""

    codes: Tensor  # (n, l, dim) in the features' places, with their gradient
    tokens: Tensor  # (n, l)
    commitment: Tensor  # scalar


class Quantizer(nn.Module):
    """Codes that are the moving averages of the features nearest to them.

    N_v ← γN_v + (1 − γ)n_v, m_v ← γm_v + (1 − γ)Σh, e_v = m_v / N_v (van den Oord et al. 2017, arXiv 1711.00937,
    appendix A.1). The gradient passes straight through. What becomes of a code that hardly anything is near to is said
    by `patience`.

    Args:
        codes: how many.
        dim: of features.
        decay: γ.
        patience: steps without a feature after which a code becomes a copy of one that is used, a little moved; 0: a
            code that is used much less than the mean is put on a feature of the batch, at once.
    """

    codebook: Tensor  # (codes, dim)
    counts: Tensor  # (codes,)
    sums: Tensor  # (codes, dim)
    begun: Tensor
    idle: Tensor  # (codes,) steps since a feature was near; only with patience

    def __init__(self, codes: int, dim: int, decay: float = 0.99, patience: int = 0) -> None:
        super().__init__()
        self.codes, self.decay, self.patience = codes, decay, patience
        start = torch.randn(codes, dim)
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", start.clone())
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        if patience:
            self.register_buffer("idle", torch.zeros(codes, dtype=torch.long))

    def forward(self, features: Tensor) -> Quantised:
        """Features (n, l, dim) of one kind; in training the codes follow them."""
        valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return self.together([(features, valid)])[0]

    def together(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[Quantised]:
        """Features of several kinds, each (n, l, dim) with the places (n, l) that hold one; all count alike.

        In training the codes follow once, after all kinds have been looked up: N_v and m_v are sums over the kinds.
        """
        flat = torch.cat([features.detach()[valid] for features, valid in parts]).float()
        if self.training:
            flat = gather(flat)  # codes follow the features of all processes, and stay the same in each
        if self.training and not self.begun:
            self._begin(flat)
        found = [self._look_up(features, valid) for features, valid in parts]
        if self.training:
            tokens = torch.cat([f.tokens[valid] for f, (_, valid) in zip(found, parts, strict=True)])
            self._follow(flat, gather(tokens))
        return found

    def _look_up(self, features: Tensor, valid: Tensor) -> Quantised:
        tokens = self.nearest(features)
        codes = self.codebook[tokens]  # as they were when they were chosen
        commitment = F.mse_loss(features[valid].float(), codes[valid])
        return Quantised(features + (codes - features).detach(), tokens, commitment)

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """The code nearest to each feature (…, dim), (…)."""
        distances: Tensor = torch.cdist(features.flatten(0, -2).float(), self.codebook)
        return distances.argmin(1).view(features.shape[:-1])

    def probabilities(self, features: Tensor) -> Tensor:
        """How probable each code is at each feature (…, dim): softmax over −‖h − e_v‖, the distance not squared.

        Source: Liu et al. 2021, "Cross-Modal Discrete Representation Learning", arXiv 2106.05438. The
        codes have no gradient.

        Shape: (…, codes).
        """
        flat = features.flatten(0, -2).float()
        # not torch.cdist, whose gradient is no number where a feature lies on its code
        squares = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codebook.T + self.codebook.square().sum(1)
        distances = squares.clamp_min(1e-6).sqrt()
        return (-distances).softmax(1).view(*features.shape[:-1], self.codes)

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
        if self.patience:
            self._copy(used, total / self.codes)
        else:
            self._revive(flat, total / self.codes)

    def _revive(self, flat: Tensor, mean_use: Tensor) -> None:
        idle = self.counts < LEAST * mean_use
        chosen = flat[torch.randint(len(flat), (self.codes,), device=flat.device)]
        self.codebook[idle] = chosen[idle]
        self.sums[idle] = chosen[idle] * mean_use
        self.counts[idle] = mean_use

    def _copy(self, used: Tensor, mean_use: Tensor) -> None:
        """Codes that nothing was near to for too long become copies of those that are used, drawn by their use."""
        self.idle.add_(1).masked_fill_(used > 0, 0)
        dead = self.idle > self.patience
        if not dead.any() or dead.all():
            return
        chosen = torch.multinomial(self.counts.masked_fill(dead, 0), int(dead.sum()), replacement=True)
        copies = self.codebook[chosen]
        copies = copies + NOISE * self.codebook[~dead].std(0, correction=0) * torch.randn_like(copies)
        self.codebook[dead] = copies
        self.sums[dead] = copies * mean_use
        self.counts[dead] = mean_use
        self.idle[dead] = 0
