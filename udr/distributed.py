"""One batch over several processes (`accelerate launch`): each works on its rows, and losses see those of all.

Gradients are averaged over processes, so a loss is right where its mean over processes is that of the whole batch: a
mean over pictures is, each over its own; and so is a loss of gathered features that each process computes whole.
Without processes every function here gives back what it was given.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["SyncedBatchNorm", "gather", "own_rows", "place", "processes", "sync_normalisation"]


def processes() -> int:
    """How many share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def place() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def own_rows(count: int) -> slice:
    """Rows of this process among `count`, which the processes divide evenly."""
    share = count // processes()
    return slice(place() * share, (place() + 1) * share)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        summed = gradient.clone(memory_format=torch.contiguous_format)  # what every process's loss asks of these rows
        dist.all_reduce(summed)
        return summed[own_rows(len(summed))]


def gather(rows: Tensor) -> Tensor:
    """Rows (n, …) of all processes, in their order, (n · processes, …), with their gradients."""
    if processes() == 1:
        return rows
    found: Tensor = _Gathered.apply(rows)  # type: ignore[no-untyped-call]
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        found = value.clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].clone()
        dist.all_reduce(found)
        return found


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the means of all processes' batches; on CPUs too, where torch has none."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 — torch's name
        pass

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 — torch's name
        if not self.training:
            return super().forward(input)
        over = [d for d in range(input.dim()) if d != 1]
        wide, count = input.float(), input.numel() // input.shape[1] * processes()
        sums: Tensor = _Summed.apply(wide.sum(over))  # type: ignore[no-untyped-call]
        mean = sums / count
        shape = [1, -1, *[1] * (input.dim() - 2)]
        centred = wide - mean.view(shape)
        squares: Tensor = _Summed.apply(centred.square().sum(over))  # type: ignore[no-untyped-call]
        variance = squares / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        found = centred * scale.view(shape)
        return (found + self.bias.view(shape) if self.affine else found).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)


def sync_normalisation(module: nn.Module) -> None:
    """Make every batch normalisation inside one over all processes, in place; weights and names stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            found = SyncedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            found.weight, found.bias = child.weight, child.bias
            for statistic in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(found, statistic, getattr(child, statistic))
            setattr(module, name, found.train(child.training))
        else:
            sync_normalisation(child)
