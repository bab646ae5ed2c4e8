"""Methods whose networks learn by turns, against each other: several losses in a step, each moving its own networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["TakesTurns", "Turn", "Turns"]


@dataclass(frozen=True)
class Turn:
    """One update within a step.

    Args:
        losses: `loss` is the one to be made less.
        networks: whose optimisers take a step by it; the other weights stay as they are.
    """

    losses: dict[str, Tensor]
    networks: tuple[str, ...]


@runtime_checkable
class TakesTurns(Protocol):
    """What a method has besides `training.loop.Method` to learn by turns; it is not called, and shares no batches."""

    def optimizers(self, lr: float, weight_decay: float) -> dict[str, torch.optim.Optimizer]:
        """An optimiser for each network by its name.

        A group of weights may say by `scale` what its rate is multiplied by, and by `clip` how long the gradient of
        all its weights may be.
        """
        ...

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        """The updates of a step, one after the other: each is made before the next is asked for."""
        ...


class Turns:
    """Optimisers by name that look like one to the loop; `state_dict` is that of all of them."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises LookupError where the names are others."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])

    def take(
        self, turns: Iterator[Turn], mixed: Callable[[], AbstractContextManager[object]], clip: float = 0.0
    ) -> dict[str, float]:
        """Make each update, its forward pass within `mixed`; give what the turns' losses are made of.

        `clip` bounds the length of each network's gradient where its own group names no bound; 0: none.

        Their sums are not told: what one turn makes less another makes more, and steps may have other turns.
        """
        told: dict[str, float] = {}
        while True:
            with mixed():
                turn = next(turns, None)
            if turn is None:
                return told
            for optimizer in self.optimizers.values():  # a turn's gradients reach networks that it does not move
                optimizer.zero_grad(set_to_none=True)
            turn.losses["loss"].backward()  # type: ignore[no-untyped-call]
            for name in turn.networks:
                for group in self.optimizers[name].param_groups:
                    if bound := group.get("clip") or clip:
                        torch.nn.utils.clip_grad_norm_(group["params"], bound)
                self.optimizers[name].step()
            told |= {name: float(value.detach()) for name, value in turn.losses.items() if name != "loss"}
