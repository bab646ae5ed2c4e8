"""LARS: SGD whose steps are as long as each layer's weights allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LARS", "weight_groups"]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates: g ← g + wd·w, g ← g · η‖w‖/‖g‖, v ← m·v + lr·g, w ← w − v.

    Groups with `adapt: False` (biases and normalisation) take plain steps. Source: You et al. 2017, "Large Batch
    Training of Convolutional Networks", arXiv 1708.03888, as SimCLR's code has it: the rate is inside the momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._step(weights, group)
        return loss

    def _step(self, weights: Tensor, group: dict[str, Any]) -> None:
        gradient = weights.grad.add(weights, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if group["adapt"]:
            length, steepness = weights.norm(), gradient.norm()
            ratio = group["trust"] * length / steepness
            gradient = gradient * torch.where((length > 0) & (steepness > 0), ratio, torch.ones_like(ratio))
        state = self.state[weights]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weights)
        velocity = state["velocity"].mul_(group["momentum"]).add_(gradient, alpha=group["lr"])
        weights.sub_(velocity)


def weight_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights that decay, and biases and normalisations that do not (nor are they adapted by LARS)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, "adapt": False},
    ]
