"""Networks of many tasks: a trunk that is shared or branches, MTI-Net, and the heads that both end in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.mti import Distillation, Propagation, TaskFeatures
from embed.pyramids import build_stages, normalised, widths_of
from udr.errors import ConfigError, UnknownNameError

__all__ = [
    "DENSE_KINDS",
    "BranchedNet",
    "Branching",
    "DenseKind",
    "MTINet",
    "MultiTaskNet",
    "Outputs",
    "build_multi_task_net",
]

DenseKind = Literal["segmentation", "depth", "edges", "saliency"]
DENSE_KINDS: tuple[DenseKind, ...] = get_args(DenseKind)
Branching = list[list[list[str]]]  # of each stage, from the first, the groups of tasks that share it
HIDDEN = 32  # features of a dense head


@dataclass
class Outputs:
    """What one pass makes of n pictures.

    Args:
        embedding: (n, d), before it is brought to length 1.
        tasks: of each dense task (n, c, s, s), of each attribute (n, classes).
        early: of each dense task its first predictions, the finest scale first, (n, c, s, s); of MTI-Net alone.
    """

    embedding: Tensor
    tasks: dict[str, Tensor]
    early: dict[str, list[Tensor]] = field(default_factory=dict)


class DenseHead(nn.Module):
    """Features of all scales -> a map (n, out, s, s) at twice the finest scale.

    Each scale is brought to `hidden` features and summed, from the coarsest on: as HRNet's head (Sun et al. 2019, arXiv
    1904.04514), which concatenates all scales before a 1 x 1 convolution, but computed before the upsampling, which is
    cheaper.
    """

    def __init__(self, widths: Sequence[int], out: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Conv2d(width, hidden, 1, bias=False) for width in widths)
        self.last = nn.Sequential(nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, 4 * out, 1), nn.PixelShuffle(2))

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        own = [layer(cells) for layer, cells in zip(self.each, scales, strict=True)]
        summed = own[-1]
        for finer in own[-2::-1]:
            summed = finer + _scaled(summed, finer.shape[2])
        found: Tensor = self.last(summed)
        return found


class MultiTaskNet(nn.Module, ABC):
    """What networks of many tasks have in common; a `training.probes.FeatureNetwork` by its embedding.

    Args:
        size: pixels of a side.
        dense: channels of each dense task.
        attributes: classes of each attribute.
        dim: of the embedding.
    """

    def __init__(self, size: int, dense: Mapping[str, int], attributes: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.dense, self.attributes = dict(dense), dict(attributes)

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*self.dense, *self.attributes)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def pooled(self, pixels: Tensor) -> Tensor:
        """The embedding alone, (n, dim)."""
        outputs: Outputs = self(pixels)
        return outputs.embedding

    @abstractmethod
    def shared(self) -> list[nn.Parameter]:
        """Parameters that more than one task moves."""


class BranchedNet(MultiTaskNet):
    """A trunk of four stages, of which tasks share what the branching says, and heads of their own.

    With one group at each stage it is plain (hard) sharing, with as many as there are tasks they share nothing. The
    embedding is the mean over the last stage's cells, of each of its groups, one behind the other. Source: Vandenhende
    et al. 2020, "Branched Multi-Task Networks: Deciding What Layers To Share", arXiv 1904.02920.

    Args:
        name: of the stages (`embed.pyramids`).
        size, dense, attributes: as `MultiTaskNet`.
        branching: groups of tasks at each stage; none: all share all.
    """

    def __init__(
        self,
        name: str,
        size: int,
        dense: Mapping[str, int],
        attributes: Mapping[str, int],
        branching: Branching | None = None,
    ) -> None:
        widths, tasks = widths_of(name), (*dense, *attributes)
        groups = branching or [[list(tasks)] for _ in widths]
        check_branching(groups, tasks, len(widths))
        super().__init__(size, dense, attributes, widths[-1] * len(groups[-1]))
        self.branching = [[list(group) for group in level] for level in groups]
        self.stages = nn.ModuleList(
            nn.ModuleList(level) for level in build_stages(name, size, [len(level) for level in groups])
        )
        self.heads = nn.ModuleDict({task: DenseHead(widths, out) for task, out in dense.items()})
        self.classifiers = nn.ModuleDict({task: nn.Linear(widths[-1], out) for task, out in attributes.items()})

    @property
    def copies(self) -> list[list[nn.Module]]:
        """Of each stage one module a group of tasks."""
        return [list(level) for level in self.stages]  # type: ignore[call-overload]

    def features(self, pixels: Tensor) -> list[list[Tensor]]:
        """Of each stage and group of tasks its features (n, c, h, w)."""
        levels: list[list[Tensor]] = []
        above = [normalised(pixels)]
        for depth, (level, stages) in enumerate(zip(self.branching, self.copies, strict=True)):
            parents = [0 if not depth else _group_of(group[0], self.branching[depth - 1]) for group in level]
            above = [stage(above[parent]) for stage, parent in zip(stages, parents, strict=True)]
            levels.append(above)
        return levels

    def forward(self, pixels: Tensor) -> Outputs:
        levels = self.features(pixels)
        means = [cells.mean((2, 3)) for cells in levels[-1]]
        found: dict[str, Tensor] = {}
        for task in self.tasks:
            path = [_group_of(task, groups) for groups in self.branching]
            if task in self.dense:
                found[task] = self.heads[task]([level[group] for level, group in zip(levels, path, strict=True)])
            else:
                found[task] = self.classifiers[task](means[path[-1]])
        return Outputs(torch.cat(means, 1), found)

    def shared(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = []
        for level, stages in zip(self.branching, self.copies, strict=True):
            for group, stage in zip(level, stages, strict=True):
                found += stage.parameters() if len(group) > 1 else []
        return found


def _group_of(task: str, groups: list[list[str]]) -> int:
    return next(i for i, group in enumerate(groups) if task in group)


def check_branching(branching: Branching, tasks: Sequence[str], stages: int) -> None:
    """Refuse what is no branching: groups that lose or repeat a task, or meet again behind a fork.

    Raises:
        ConfigError: says at which stage.
    """
    if len(branching) != stages:
        raise ConfigError(f"branching: {len(branching)} stages, and the network has {stages}")
    for depth, level in enumerate(branching):
        if sorted(task for group in level for task in group) != sorted(tasks) or not all(level):
            raise ConfigError(f"branching: stage {depth} must hold each of {', '.join(tasks)} once")
        for group in level if depth else ():
            if len({_group_of(task, branching[depth - 1]) for task in group}) > 1:
                raise ConfigError(f"branching: {', '.join(group)} meet at stage {depth} and are apart before it")


class MTINet(MultiTaskNet):
    """Tasks tell each other what they see, at every scale, the coarsest first.

    At each scale every dense task makes a first prediction, from the trunk's features and from what the tasks agreed
    on one scale coarser (feature propagation); then each takes from the others' features what helps it (distillation),
    and predicts from all scales at once. Attributes are read from the trunk's embedding. Source: Vandenhende et al.
    2020, "MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning", arXiv 2001.06902, section 3.

    Args:
        name, size, dense, attributes: as `BranchedNet`.
        width: features of a task at each scale.
    """

    def __init__(
        self, name: str, size: int, dense: Mapping[str, int], attributes: Mapping[str, int], width: int = 16
    ) -> None:
        if len(dense) < 2:
            raise ConfigError("MTI-Net: two dense tasks at least, which can tell each other something")
        widths = widths_of(name)
        super().__init__(size, dense, attributes, widths[-1])
        names, scales = list(dense), len(widths)
        self.stages = nn.ModuleList(stage for level in build_stages(name, size) for stage in level)
        self.first = nn.ModuleList(
            TaskFeatures(own + (width if i + 1 < scales else 0), width, dense) for i, own in enumerate(widths)
        )
        self.propagation = nn.ModuleList(Propagation(names, width) for _ in widths[1:])  # from a scale to the finer
        self.distillation = nn.ModuleList(Distillation(names, width) for _ in widths)
        self.heads = nn.ModuleDict({task: DenseHead([width] * scales, out) for task, out in dense.items()})
        self.classifiers = nn.ModuleDict({task: nn.Linear(widths[-1], out) for task, out in attributes.items()})

    def forward(self, pixels: Tensor) -> Outputs:
        scales, cells = [], normalised(pixels)
        for stage in self.stages:
            cells = stage(cells)
            scales.append(cells)
        embedding = scales[-1].mean((2, 3))
        distilled: list[dict[str, Tensor]] = []  # the coarsest first
        early: dict[str, list[Tensor]] = {task: [] for task in self.dense}
        passed: dict[str, Tensor] = {}
        for i in range(len(scales) - 1, -1, -1):
            own, predicted = self.first[i](_joined(scales[i], passed, list(self.dense)))
            for task, logits in predicted.items():
                early[task].insert(0, _scaled(logits, pixels.shape[2]))
            distilled.append(self.distillation[i](own))
            passed = self.propagation[i - 1](own) if i else {}
        found = {task: self.heads[task]([level[task] for level in distilled[::-1]]) for task in self.dense}
        found |= {task: self.classifiers[task](embedding) for task in self.attributes}
        return Outputs(embedding, found, early)

    def shared(self) -> list[nn.Parameter]:
        """All but the last heads and the classifiers: what a task knows of itself serves the others too."""
        parts = (self.stages, self.first, self.propagation, self.distillation)
        return [weights for part in parts for weights in part.parameters()]


def _joined(cells: Tensor, passed: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """The trunk's features of a scale, for each task beside what came from the coarser one."""
    if not passed:
        return dict.fromkeys(tasks, cells)
    return {task: torch.cat([cells, _scaled(passed[task], cells.shape[2])], 1) for task in tasks}


def _scaled(cells: Tensor, side: int) -> Tensor:
    return F.interpolate(cells, size=(side, side), mode="bilinear", align_corners=False)


def build_multi_task_net(
    network: str,
    backbone: str,
    size: int,
    dense: Mapping[str, int],
    attributes: Mapping[str, int],
    *,
    branching: Branching | None = None,
    width: int = 16,
) -> MultiTaskNet:
    """Make an untrained network: `shared`, `branched` or `mti`.

    Raises:
        UnknownNameError: no such network or backbone (lists the near names).
        ConfigError: a size, tasks or a branching that do not fit it.
    """
    if not dense and not attributes:
        raise ConfigError("a network of many tasks wants one task at least")
    if network == "mti":
        return MTINet(backbone, size, dense, attributes, width)
    if network == "shared":
        return BranchedNet(backbone, size, dense, attributes)
    if network == "branched":
        if not branching:
            raise ConfigError("network branched: give the branching (see `udr branch`)")
        return BranchedNet(backbone, size, dense, attributes, branching)
    raise UnknownNameError("network of many tasks", network, ("shared", "branched", "mti"))
