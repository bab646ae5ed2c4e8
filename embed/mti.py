"""The parts of MTI-Net: first predictions, what tasks agree on, and what each takes from the others.

Source: Vandenhende et al. 2020, "MTI-Net", arXiv 2001.06902, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embed.pyramids import BasicBlock

__all__ = ["Distillation", "Propagation", "TaskFeatures"]


class TaskFeatures(nn.Module):
    """Of one scale: each task's own features, by two blocks, and its first prediction from them.

    Args:
        before: features that come in, for each task.
        width: of a task's own.
        dense: channels of each task's prediction.
    """

    def __init__(self, before: int, width: int, dense: Mapping[str, int]) -> None:
        super().__init__()
        self.own = nn.ModuleDict(
            {task: nn.Sequential(BasicBlock(before, width), BasicBlock(width, width)) for task in dense}
        )
        self.predictions = nn.ModuleDict({task: nn.Conv2d(width, out, 1) for task, out in dense.items()})

    def forward(self, cells: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features (n, width, h, w) and predictions (n, out, h, w) of each task."""
        own = {task: layers(cells[task]) for task, layers in self.own.items()}
        return own, {task: layer(own[task]) for task, layer in self.predictions.items()}


class Propagation(nn.Module):
    """What tasks hand on to the finer scale: how much each counts, per feature, then what each makes of the rest.

    All tasks' features together give weights by a softmax over tasks; the weighted features of all are reduced to each
    task's width, its channels are gated (squeeze and excitation, Hu et al. 2018, arXiv 1709.01507) and its own
    features added.
    """

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__()
        self.tasks, together = list(tasks), width * len(tasks)
        narrow = max(8, together // 4)
        self.weigh = nn.Sequential(
            BasicBlock(together, narrow), BasicBlock(narrow, narrow), nn.Conv2d(narrow, together, 1)
        )
        self.reduce = nn.ModuleDict({task: nn.Conv2d(together, width, 1, bias=False) for task in tasks})
        self.gates = nn.ModuleDict({task: _gate(width) for task in tasks})

    def forward(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features (n, width, h, w) of each task."""
        cells = torch.cat([own[task] for task in self.tasks], 1)
        n, _, h, w = cells.shape
        weights = self.weigh(cells).view(n, len(self.tasks), -1, h, w).softmax(1).view_as(cells)
        shared, found = weights * cells, {}
        for task in self.tasks:
            reduced = self.reduce[task](shared)
            found[task] = reduced * self.gates[task](reduced) + own[task]
        return found


def _gate(width: int, ratio: int = 4) -> nn.Module:
    """A factor from 0 to 1 for each channel, by the means of all, (n, width, 1, 1)."""
    narrow = max(4, width // ratio)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, width, 1), nn.Sigmoid()
    )


class Distillation(nn.Module):
    """F_t + Σ_{a≠t} C_{t,a}(F_a) · sigmoid(A_{t,a}(F_a)): each task takes from the others where they have something.

    The convolutions of 3 x 3 C and A that read the same task's features are computed as one.
    """

    def __init__(self, tasks: Sequence[str], width: int) -> None:
        super().__init__()
        self.tasks, self.width = list(tasks), width
        out = 2 * (len(tasks) - 1) * width
        self.tell = nn.ModuleDict({task: nn.Conv2d(width, out, 3, 1, 1) for task in tasks})

    def forward(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features (n, width, h, w) of each task."""
        found = dict(own)
        for teller in self.tasks:
            told = self.tell[teller](own[teller]).split(2 * self.width, 1)
            for listener, part in zip((task for task in self.tasks if task != teller), told, strict=True):
                taken, where = part.chunk(2, 1)
                found[listener] = found[listener] + taken * where.sigmoid()
        return found
