"""DenseCL: two views of a picture are each other's, and so are their cells."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.backbones import Backbone
from training.augment import Views
from training.heads import follow, frozen, in_full, over_cells
from training.losses.densecl import dense_info_nce, info_nce, match_cells
from udr.distributed import gather

__all__ = ["DenseCL"]


class _Network(nn.Module):
    """A backbone with a head for the whole picture and one for its cells."""

    def __init__(self, backbone: Backbone, hidden: int, out: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.whole = nn.Sequential(nn.Linear(backbone.dim, hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.dense = nn.Sequential(nn.Conv2d(backbone.dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out, 1))

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n, c, s), of the picture (n, d) of length 1, of its cells (n, d, s) before they are normalised."""
        cells = self.backbone(view)
        whole = F.normalize(self.whole(over_cells(cells)).float(), dim=1)
        return cells.flatten(2).float(), whole, self.dense(cells).flatten(2).float()


class DenseCL(nn.Module):
    """Source: Wang et al. 2021, arXiv 2011.09157. Keys are of a network that follows, negatives of two queues.

    Args:
        backbone: which is learnt.
        views: makes two of each picture.
        dense_weight: λ, of the cells' loss; 0 is MoCo v2.
        temperature: of both losses.
        momentum: with which the key network follows.
        queue: keys that are remembered, of pictures and of their cells' means.
        hidden: width of the heads; 0: the backbone's.
        out: features that are compared.
    """

    queue: Tensor  # (m, d) of pictures
    dense_queue: Tensor  # (m, d) of their cells' means
    place: Tensor  # of the oldest in both

    shares_batches = True

    def __init__(
        self,
        backbone: Backbone,
        views: Views,
        *,
        dense_weight: float = 0.5,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue: int = 65536,
        hidden: int = 0,
        out: int = 128,
    ) -> None:
        super().__init__()
        self.views, self.dense_weight, self.temperature, self.momentum = views, dense_weight, temperature, momentum
        self.query = _Network(backbone, hidden or backbone.dim, out)
        self.key = frozen(copy.deepcopy(self.query))
        self.register_buffer("queue", F.normalize(torch.randn(queue, out), dim=1))
        self.register_buffer("dense_queue", F.normalize(torch.randn(queue, out), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self._fresh: list[tuple[Tensor, Tensor]] = []  # keys of this step, which the queues get after it

    @property
    def backbone(self) -> Backbone:
        return self.query.backbone

    def forward(self, views: tuple[Tensor, ...], progress: float) -> dict[str, Tensor]:
        first, second = views
        features, whole, cells = self.query(first)
        with torch.no_grad():
            key_features, key_whole, key_cells = self.key(second)
        with in_full(first):
            matched = match_cells(features, key_features)
            dense = dense_info_nce(
                F.normalize(cells, dim=1), F.normalize(key_cells, dim=1), matched, self.dense_queue, self.temperature
            )
            own = info_nce(whole, key_whole, self.queue, self.temperature)
            self._fresh.append((gather(key_whole), gather(F.normalize(key_cells.mean(2), dim=1))))
        return {"loss": (1 - self.dense_weight) * own + self.dense_weight * dense, "whole": own, "dense": dense}

    def after_step(self, progress: float) -> None:
        follow(self.key, self.query, self.momentum)
        for whole, cells in self._fresh:
            self._enqueue(whole, cells)
        self._fresh.clear()

    def _enqueue(self, whole: Tensor, cells: Tensor) -> None:
        """Put keys in the place of the oldest."""
        size = len(self.queue)
        whole, cells = whole[-size:], cells[-size:]
        places = (self.place + torch.arange(len(whole), device=whole.device)) % size
        self.queue[places], self.dense_queue[places] = whole, cells
        self.place.copy_((self.place + len(whole)) % size)
