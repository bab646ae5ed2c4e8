"""The loss of labels that are said one by one, whose order the model itself chooses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["next_targets", "sequence_loss"]


def next_targets(log_p: Tensor, remaining: Tensor, priority: Tensor | None = None) -> Tensor:
    """What is to be said next: of the true labels that were not said, the one that the model finds most probable.

    Once none is left, it is the end, number c. With `priority` the order is fixed: of those left, the one of the
    highest priority. Source: Chen et al. 2018, "Order-Free RNN with Visual Attention for Multi-Label Classification",
    arXiv 1707.05495, section 3.2.

    Shape: log_p (n, c + 1), remaining (n, c) bool, priority (c,). The result is (n,) from 0 to c.
    """
    count = remaining.shape[1]
    scores = log_p[:, :count] if priority is None else priority.to(log_p.dtype).expand(len(log_p), count)
    best = scores.detach().masked_fill(~remaining, float("-inf")).argmax(1)
    return torch.where(remaining.any(1), best, torch.full_like(best, count))


def sequence_loss(log_p: Tensor, targets: Tensor, end: int) -> Tensor:
    """−log p of what was to be said, the mean over all steps up to the first end of each thing, that one included.

    Shape: log_p (n, t, c + 1), targets (n, t) whose `end` repeats behind the first one. The result is a scalar in nats.
    """
    found = -log_p.gather(2, targets[..., None])[..., 0]
    over = (targets == end).long().cumsum(1) - (targets == end).long()  # ends before this step
    counted = over == 0
    return torch.where(counted, found, torch.zeros_like(found)).sum() / counted.sum()
