"""Losses of dense and global tasks, one number each, before they are weighed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from embed.multi_task_nets import DenseKind

__all__ = ["attribute_loss", "balanced_bce", "dense_loss"]

UNKNOWN = 255  # class of pixels that are not learnt from
POSITIVE = {"edges": 0.8, "saliency": 0.5}  # share of the loss that pixels which are some count with


def balanced_bce(logits: Tensor, target: Tensor, positive: float) -> Tensor:
    """Mean over pixels of −w · y · log σ(x) − (1 − w) · (1 − y) · log(1 − σ(x)), w being `positive`.

    Edges are few: with w = 0.5, half of plain cross-entropy, a network learns that there are none. Source: Xie and Tu
    2015, arXiv 1504.06375, equation 2, with a fixed weight as MTI-Net's code has it.

    Shape: logits and target (n, h, w).
    """
    loss = positive * target * F.softplus(-logits) + (1 - positive) * (1 - target) * F.softplus(logits)
    return loss.mean()


def dense_loss(kind: DenseKind, logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of classes, the mean distance of depths, or `balanced_bce`; unknown pixels count for nothing.

    Shape: logits (n, c, h, w); target (n, h, w), classes, depths (0 where unknown) or 0 and 1.
    """
    logits = logits.float()
    if kind == "segmentation":
        counted = (target != UNKNOWN).sum().clamp_min(1)
        return F.cross_entropy(logits, target.long(), ignore_index=UNKNOWN, reduction="sum") / counted
    if kind == "depth":
        known = (target > 0).float()
        return ((logits[:, 0] - target.float()).abs() * known).sum() / known.sum().clamp_min(1)
    return balanced_bce(logits[:, 0], target.float(), POSITIVE[kind])


def attribute_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, over those of n whose class is known (not −1).

    Shape: logits (n, c), classes (n,).
    """
    counted = torch.count_nonzero(classes >= 0).clamp_min(1)
    return F.cross_entropy(logits.float(), classes, ignore_index=-1, reduction="sum") / counted
