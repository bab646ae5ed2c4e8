"""Parts that methods put on a backbone while they train it, and teachers that follow."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["follow", "frozen", "in_full", "mlp", "over_cells", "rising"]


def mlp(widths: list[int], last_norm: bool = False, affine: bool = True) -> nn.Sequential:
    """Linear layers with batch normalisation and ReLU between; `last_norm` normalises the output too.

    `affine: false` leaves the last normalisation without weights of its own.
    """
    layers: list[nn.Module] = []
    for i, (before, width) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(before, width, bias=last and not last_norm))
        if not last:
            layers += [nn.BatchNorm1d(width), nn.ReLU()]
        elif last_norm:
            layers.append(nn.BatchNorm1d(width, affine=affine))
    return nn.Sequential(*layers)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher's weights towards the student's: t ← m·t + (1 − m)·s; its running statistics are its own."""
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.lerp_(s, 1 - momentum)


def rising(momentum: float, progress: float) -> float:
    """A teacher's momentum, which rises to 1 by a cosine while training goes from 0 to 1."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


def frozen(module: nn.Module) -> nn.Module:
    """The same module, which no optimiser changes."""
    return module.requires_grad_(False)


def over_cells(cells: Tensor) -> Tensor:
    """The mean over the cells of a grid, (n, d, h, w) -> (n, d)."""
    return cells.mean((2, 3))


def in_full(tensor: Tensor) -> AbstractContextManager[object]:
    """Views and losses are computed in float32, whatever type the networks multiply in."""
    return torch.autocast(tensor.device.type, enabled=False)
