"""Multi-task learning: one network learns dense tasks and attributes from pictures whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from embed.multi_task_nets import DenseKind, MultiTaskNet, Outputs
from training.annotated import Annotated
from training.heads import in_full
from training.losses.multi_task import attribute_loss, dense_loss
from udr.weighting import Weighting

__all__ = ["MultiTask"]


class MultiTask(nn.Module):
    """A loss a task, which a weighting of the registry makes one step of; the loop asks it to (`weighting`).

    First predictions at the scales of MTI-Net are learnt as the last ones are (deep supervision), and count as part of
    their task's loss. The loop hands on numbers of pictures; what they are lies here. Source: Vandenhende et al. 2021,
    "Multi-Task Learning for Dense Prediction Tasks: A Survey", arXiv 2004.13379.

    Args:
        net: which is learnt.
        data: pictures and labels.
        kinds: of the dense tasks.
        weighting: of as many tasks as the network has.
        weights: factors of tasks' losses before they are weighed; 1 where none is given.
        early: weight of each first prediction beside the last one.
        flip: mirror half of the pictures, and their maps.
    """

    def __init__(
        self,
        net: MultiTaskNet,
        data: Annotated,
        kinds: Mapping[str, DenseKind],
        weighting: Weighting,
        *,
        weights: Mapping[str, float] | None = None,
        early: float = 1.0,
        flip: bool = True,
    ) -> None:
        super().__init__()
        self.net, self.weighting = net, weighting
        self.kinds, self.factors, self.early, self.flip = dict(kinds), dict(weights or {}), early, flip
        self._data = data
        self._dense = {task: torch.from_numpy(data.dense[task]) for task in net.dense}
        self._classes = {task: torch.from_numpy(data.attributes[task]) for task in net.attributes}

    @property
    def backbone(self) -> MultiTaskNet:
        """What the online probe asks."""
        return self.net

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the losses that are weighed."""
        return self.net.tasks

    def shared(self) -> list[nn.Parameter]:
        """Parameters that more than one task moves."""
        return self.net.shared()

    def forward(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Losses of pictures by their numbers (n,): of each task, and their plain sum, which is told."""
        pixels, dense, classes = self._drawn(rows)
        outputs = cast(Outputs, self.net(pixels))
        with in_full(pixels):
            found = {task: self._dense_loss(task, outputs, dense[task]) for task in dense}
            found |= {task: attribute_loss(outputs.tasks[task], classes[task]) for task in classes}
            weighed = {task: loss * self.factors.get(task, 1.0) for task, loss in found.items()}
            return {"loss": torch.stack(list(weighed.values())).sum().detach(), **weighed}

    def after_step(self, progress: float) -> None:
        pass

    def _drawn(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Pixels (n, 3, s, s) from 0 to 1, maps (n, s, s) and classes (n,), some mirrored."""
        own, where = rows.cpu(), rows.device
        pixels = torch.from_numpy(self._data.pixels[own.numpy()])
        dense = {task: maps[own] for task, maps in self._dense.items()}
        if self.flip:
            mirrored = torch.rand(len(own)) < 0.5
            pixels[mirrored] = pixels[mirrored].flip(-1)
            for maps in dense.values():
                maps[mirrored] = maps[mirrored].flip(-1)
        whole = pixels.to(where).float() / 255
        return whole, _moved(dense, where), _moved({t: c[own] for t, c in self._classes.items()}, where)

    def _dense_loss(self, task: str, outputs: Outputs, target: Tensor) -> Tensor:
        kind = self.kinds[task]
        loss = dense_loss(kind, outputs.tasks[task], target)
        for logits in outputs.early.get(task, ()):
            loss = loss + self.early * dense_loss(kind, logits, target)
        return loss


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
