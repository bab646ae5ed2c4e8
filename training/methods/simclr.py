"""SimCLR: two views of a picture are each other's, among all views of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embed.backbones import Backbone
from training.augment import Views
from training.heads import in_full, mlp
from training.losses.simclr import nt_xent
from udr.distributed import gather

__all__ = ["SimCLR"]


class SimCLR(nn.Module):
    """Source: Chen et al. 2020, arXiv 2002.05709. The features that serve are those before the head.

    Args:
        backbone: which is learnt.
        views: makes two of each picture.
        temperature: of the similarities.
        hidden: width of the head; 0: the backbone's.
        out: features that are compared.
        layers: of the head.
    """

    shares_batches = True

    def __init__(
        self,
        backbone: Backbone,
        views: Views,
        *,
        temperature: float = 0.5,
        hidden: int = 0,
        out: int = 128,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.backbone, self.views, self.temperature = backbone, views, temperature
        widths = [backbone.dim, *[hidden or backbone.dim] * (layers - 1), out]
        self.head = mlp(widths, last_norm=True)

    def forward(self, views: tuple[Tensor, ...], progress: float) -> dict[str, Tensor]:
        a, b = self.head(self.backbone.pooled(torch.cat(views))).chunk(2)
        with in_full(a):
            return {"loss": nt_xent(gather(a.float()), gather(b.float()), self.temperature)}

    def after_step(self, progress: float) -> None:
        pass
