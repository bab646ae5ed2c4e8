"""From a language model's last states to log-probabilities of chosen tokens, a block of the vocabulary at a time.

With a vocabulary of 262k tokens the logits of a few hundred states are the largest thing a small model computes: blocks
stay in the cache, and only the sum over them and the chosen tokens' logits are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

from udr.types import IntArray

__all__ = ["log_probabilities"]

BLOCK = 16384  # tokens of the vocabulary
# states whose logits are raised to float32 together; on a CPU as many as its cache holds (a third quicker than all)
TOGETHER = (16, 1024)


def log_probabilities(
    states: torch.Tensor, head: nn.Module | None, places: IntArray, targets: IntArray
) -> torch.Tensor:
    """Log-probability of each token in `targets` (s,) under the state at its place (s,): nats, float32 (s,).

    `states` are (n, d), or already the logits (n, vocabulary) where there is no head.
    """
    order = np.argsort(targets, kind="stable")
    places, targets = places[order], targets[order]
    device, slices = states.device, TOGETHER[states.device.type == "cuda"]
    sums: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    start = 0
    for block in _logits(states, head):
        width = block.shape[-1]
        first, last = np.searchsorted(targets, (start, start + width))
        rows = torch.from_numpy(places[first:last]).to(device, non_blocking=True)
        columns = torch.from_numpy(targets[first:last] - start).to(device, non_blocking=True)
        chosen.append(block[rows, columns].float())
        sums.append(torch.cat([_log_sum(part) for part in torch.split(block, slices)]))
        start += width
    normaliser = torch.stack(sums).logsumexp(0)
    values = torch.empty(len(targets), device=device)
    values[torch.from_numpy(order).to(device)] = torch.cat(chosen) - normaliser[torch.from_numpy(places).to(device)]
    return values


def _logits(states: torch.Tensor, head: nn.Module | None) -> Iterator[torch.Tensor]:
    """(n, block) for each block of the vocabulary in order."""
    if isinstance(head, nn.Linear):
        biases = [None] * -(-len(head.weight) // BLOCK) if head.bias is None else torch.split(head.bias, BLOCK)
        for weight, bias in zip(torch.split(head.weight, BLOCK), biases, strict=True):
            yield linear(states, weight, bias)
    else:
        yield from torch.split(states if head is None else head(states), BLOCK, dim=-1)


def _log_sum(logits: torch.Tensor) -> torch.Tensor:
    """logsumexp over the last dimension in float32, in one copy."""
    values = logits.to(torch.float32, copy=True)
    greatest = values.amax(-1)
    return values.sub_(greatest[:, None]).exp_().sum(-1).log_() + greatest
