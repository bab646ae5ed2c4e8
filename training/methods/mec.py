"""MEC: the views' features agree, and code with as much entropy as they can."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.backbones import Backbone
from training.augment import Views
from training.heads import follow, frozen, in_full, mlp, rising
from training.losses.mec import Form, Mode, mec_loss, spectral_radius
from udr.distributed import gather
from udr.errors import TrainingStopped

__all__ = ["MEC"]


class _Student(nn.Module):
    """A backbone and its projector."""

    def __init__(self, backbone: Backbone, hidden: int, out: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([backbone.dim, hidden, hidden, out], last_norm=True, affine=False)

    def forward(self, view: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.backbone.pooled(view))
        return projected


class MEC(nn.Module):
    """Source: Liu et al. 2022, arXiv 2210.11464.

    Args:
        backbone: which is learnt.
        views: makes two of each picture.
        mode, form: of the coding length, as `training.losses.mec`.
        distortion: ε_d.
        distortion_warmup: times ε_d at first; falls to 1 over the share `warmup` of training.
        warmup: that share.
        momentum: with which the teacher follows, rising to 1.
        hidden, out: widths of the projector.
        predictor: width of the predictor's middle.
    """

    shares_batches = True

    def __init__(
        self,
        backbone: Backbone,
        views: Views,
        *,
        mode: Mode = "exact",
        form: Form = "batch",
        distortion: float = 0.06,
        distortion_warmup: float = 8.0,
        warmup: float = 0.1,
        momentum: float = 0.996,
        hidden: int = 2048,
        out: int = 2048,
        predictor: int = 512,
    ) -> None:
        super().__init__()
        self.views, self.momentum = views, momentum
        self.mode, self.form, self.distortion = mode, form, distortion
        self.distortion_warmup, self.warmup = distortion_warmup, warmup
        self.student = _Student(backbone, hidden, out)
        self.teacher = frozen(copy.deepcopy(self.student))
        self.predictor = mlp([out, predictor, out])

    @property
    def backbone(self) -> Backbone:
        return self.student.backbone

    def distortion_at(self, progress: float) -> float:
        """ε_d times a factor that falls to 1 linearly."""
        left = max(0.0, 1 - progress / self.warmup) if self.warmup else 0.0
        return self.distortion * (1 + (self.distortion_warmup - 1) * left)

    def forward(self, views: tuple[Tensor, ...], progress: float) -> dict[str, Tensor]:
        online = [gather(self.predictor(self.student(view)).float()) for view in views]
        with torch.no_grad():
            taught = [gather(self.teacher(view).float()) for view in views]
        with in_full(views[0]):
            loss = mec_loss(
                (online[0], online[1]), (taught[0], taught[1]), self.distortion_at(progress), self.mode, self.form
            )
            if self.mode == "taylor":
                self._check_series(online, taught, self.distortion_at(progress))
        return {"loss": loss}

    def _check_series(self, online: list[Tensor], taught: list[Tensor], distortion: float) -> None:
        """Raise TrainingStopped where the series is not the coding length: its value need not show it."""
        pairs = ((online[0], taught[1]), (online[1], taught[0]))
        radius = max(
            spectral_radius(F.normalize(p.detach(), dim=1), F.normalize(z, dim=1), distortion) for p, z in pairs
        )
        if radius >= 1:
            raise TrainingStopped(
                f"the series of the coding length does not converge (spectral radius {radius:.2f}, which must be below "
                "1: the features share a direction); set mec.mode=exact, or raise mec.distortion"
            )

    def after_step(self, progress: float) -> None:
        follow(self.teacher, self.student, rising(self.momentum, progress))
