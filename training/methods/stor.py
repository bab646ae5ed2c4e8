"""STOR: two clips of a video agree, and how they overlap in time and space, their pace and rotation are told."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from embed.video_backbones import VideoBackbone
from training.clip_pairs import RATES, Box, draw_boxes, draw_spans
from training.clip_views import crop_clips, strengthen
from training.clips import Videos
from training.heads import follow, frozen, in_full, mlp
from training.losses.stor import byol_loss, labels_loss, weighted
from udr.errors import ConfigError

__all__ = ["QUESTIONS", "STOR", "Clips"]

QUESTIONS = ("spatial", "temporal", "pace", "rotation")
TURNS = 4  # quarters that a clip may be turned by


@dataclass(frozen=True)
class Clips:
    """A batch of pairs.

    Args:
        first, second: (n, t, 3, size, size) from 0 to 1.
        labels: of each question (n,), or (2, n) of those that are asked of each clip.
    """

    first: Tensor
    second: Tensor
    labels: dict[str, Tensor]


class _Student(nn.Module):
    """A backbone and, where views are to agree, its projector."""

    def __init__(self, backbone: VideoBackbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, dim), and as they are projected (n, out)."""
        features = self.backbone.pooled(clips)
        return features, self.projector(features)


class STOR(nn.Module):
    """Overlap rates in time and space beside a contrastive loss, pace and rotation. A weight of 0 leaves a part out.

    Source: the authors' code (CSTP), whose frame-folder reading is followed: the second clip is read from its own
    start. Without the question of rotation clips are not turned. The features that serve are the backbone's.

    Args:
        backbone: which is learnt.
        contrastive, spatial, temporal, pace, rotation: weights of the losses.
        paces: how many, 1, 2, 4, ….
        momentum: with which the teacher follows.
        hidden: width of the projector's and the predictor's middle.
        out: features that are to agree.
        projector: false: the predictor reads the backbone's features.
        strong: share of clips that are augmented beyond a mirror.
    """

    videos: Videos | None = None  # from which clips are drawn; see `read_from`

    def __init__(
        self,
        backbone: VideoBackbone,
        *,
        contrastive: float = 0.1,
        spatial: float = 1.0,
        temporal: float = 1.0,
        pace: float = 1.0,
        rotation: float = 1.0,
        paces: int = 4,
        momentum: float = 0.996,
        hidden: int = 4096,
        out: int = 512,
        projector: bool = True,
        strong: float = 0.3,
    ) -> None:
        super().__init__()
        named = {"contrastive": contrastive, "spatial": spatial, "temporal": temporal}
        self.weights = {n: w for n, w in (named | {"pace": pace, "rotation": rotation}).items() if w}
        if not self.weights:
            raise ConfigError("stor: every weight is 0, so there is nothing to learn")
        self.paces, self.momentum, self.strong = paces, momentum, strong
        dim = backbone.dim
        agrees = "contrastive" in self.weights
        self.student = _Student(backbone, mlp([dim, hidden, out]) if agrees and projector else nn.Identity())
        self.teacher = frozen(copy.deepcopy(self.student)) if agrees else None
        width = out if projector else dim
        self.predictor = mlp([width, hidden, width]) if agrees else None
        counts = {"spatial": len(RATES), "temporal": len(RATES), "pace": paces, "rotation": TURNS}
        self.classes = {name: count for name, count in counts.items() if name in self.weights}
        self.heads = nn.ModuleDict()
        for name, classes in self.classes.items():
            of_pairs = name in ("spatial", "temporal")
            self.heads[name] = mlp([2 * dim, 2 * dim, classes]) if of_pairs else nn.Linear(dim, classes)

    @property
    def backbone(self) -> VideoBackbone:
        return self.student.backbone

    def read_from(self, videos: Videos) -> None:
        """Draw clips from these from now on."""
        self.videos = videos

    def draw(self, numbers: Tensor, strong: float) -> Clips:
        """A pair of clips of each video by its number (n,), drawn by torch's state alone."""
        if self.videos is None:
            raise ConfigError("stor: no videos to draw clips from")
        random = Random(int(torch.randint(2**62, (1,))))
        frames, size, side = self.backbone.frames, self.backbone.size, self.videos.side
        clips: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # of the first and of the second of each pair
        boxes: tuple[list[Box], list[Box]] = ([], [])
        turns: tuple[list[int], list[int]] = ([], [])
        found: dict[str, list[int]] = {"spatial": [], "temporal": [], "pace": []}
        for number in numbers.tolist():
            pair = draw_spans(self.videos.length(number), frames, self.paces, random)
            shared = random.randrange(len(RATES))
            for i, box in enumerate(draw_boxes(side, shared, random)):
                clips[i].append(self.videos.clip(number, pair.starts[i], 1 << pair.pace, frames))
                boxes[i].append(box)
                turns[i].append(random.randrange(TURNS) if "rotation" in self.weights else 0)
            for name, value in (("spatial", shared), ("temporal", pair.overlap), ("pace", pair.pace)):
                found[name].append(value)
        device = self.backbone.device
        views = [
            strengthen(crop_clips(torch.from_numpy(np.stack(c)).to(device), t, b, size), strong)
            for c, t, b in zip(clips, turns, boxes, strict=True)
        ]
        labels = {name: torch.tensor(values, device=device) for name, values in found.items()}
        labels |= {"pace": labels["pace"].expand(2, -1), "rotation": torch.tensor(turns, device=device)}
        return Clips(views[0], views[1], labels)

    def answers(self, first: Tensor, second: Tensor) -> dict[str, list[Tensor]]:
        """Logits of each question by features (n, dim) of both clips: one of the pair, or one of each clip."""
        both = torch.cat([first, second], 1)
        return {
            name: [head(both)] if name in ("spatial", "temporal") else [head(first), head(second)]
            for name, head in self.heads.items()
        }

    def forward(self, numbers: Tensor, progress: float) -> dict[str, Tensor]:
        with in_full(numbers):
            clips = self.draw(numbers, self.strong)
        views = torch.cat([clips.first, clips.second])
        features, projected = self.student(views)
        losses: dict[str, Tensor] = {}
        if self.teacher is not None and self.predictor is not None:
            p1, p2 = self.predictor(projected).float().chunk(2)
            with torch.no_grad():
                z1, z2 = self.teacher(views)[1].float().chunk(2)
            with in_full(views):
                losses["contrastive"] = byol_loss(p1, p2, z1, z2)
        for name, logits in self.answers(*features.chunk(2)).items():
            labels = clips.labels[name]
            with in_full(views):
                losses[name] = labels_loss([x.float() for x in logits], [labels] if labels.dim() == 1 else list(labels))
        return {"loss": weighted(losses, self.weights), **losses}

    def after_step(self, progress: float) -> None:
        if self.teacher is not None:
            follow(self.teacher, self.student, self.momentum)
