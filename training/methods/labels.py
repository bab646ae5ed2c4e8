"""Labels one by one, in an order that the model chooses, that is fixed, or none at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.labelling import LabelNet, Seen, next_log_p
from training.heads import in_full
from training.labelled import LabelledThings
from training.losses.order_free import next_targets, sequence_loss
from training.moves import whole_pictures
from udr.errors import UnknownNameError

__all__ = ["ORDERS", "Labels"]

ORDERS = ("order_free", "frequent_first", "rare_first", "bce")


class Labels(nn.Module):
    """L = L_sequence + β · L_BCE, of what is said one by one and of each label by itself.

    Source: Chen et al. 2018, arXiv 1707.05495. The loop hands on numbers of things; what they are lies here.

    Args:
        net: which is learnt.
        things: with their labels.
        order: in which true labels are asked for; bce: the second part of the loss alone.
        preliminary_weight: β.
        preliminary_first: share of training in which nothing is said yet.
        moved: pictures are mirrored, recoloured and shrunk a little.
        words_dropped: share of words that are not read.
    """

    priority: Tensor | None

    def __init__(
        self,
        net: LabelNet,
        things: LabelledThings,
        *,
        order: str = "order_free",
        preliminary_weight: float = 1.0,
        preliminary_first: float = 0.2,
        moved: bool = True,
        words_dropped: float = 0.1,
    ) -> None:
        super().__init__()
        if order not in ORDERS:
            raise UnknownNameError("order of labels", order, ORDERS)
        self.net, self.order, self._things = net, order, things
        self.weight, self.first, self.moved, self.words_dropped = (
            preliminary_weight,
            preliminary_first,
            moved,
            words_dropped,
        )
        self.register_buffer("priority", _priority(things.targets, order), persistent=False)

    @property
    def backbone(self) -> LabelNet:
        """What the online probe asks."""
        return self.net

    def forward(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Losses of things by their numbers (n,)."""
        numbers = rows.cpu()
        targets = self._things.targets[numbers].to(rows.device)
        seen = self.net.see(self._inputs(self._things.inputs[numbers].to(rows.device)))
        with in_full(rows):
            steps = targets.sum() + len(targets)  # both losses count by what is said, ends included
            bce = F.binary_cross_entropy_with_logits(seen.preliminary, targets.float(), reduction="sum") / steps
            found = {"loss": self.weight * bce, "bce": bce, "sequence": torch.zeros_like(bce)}
            if self.order != "bce" and progress >= self.first:
                log_p, said = self.said(seen, targets)
                found["sequence"] = sequence_loss(log_p, said, self.net.count)
                found["loss"] = found["loss"] + found["sequence"]
        return found

    def after_step(self, progress: float) -> None:
        pass

    def said(self, seen: Seen, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (n, t, c + 1) of what may be said, and what is to be said (n, t), which is said."""
        end, remaining = self.net.count, targets
        emitted = torch.zeros_like(targets)
        state, before = self.net.begin(len(targets)), seen.preliminary.detach().sigmoid()
        log_ps, chosen = [], []
        for _ in range(int(targets.sum(1).max()) + 1):
            logits, state, _ = self.net.step(seen, state, before)
            log_ps.append(next_log_p(logits, emitted))
            chosen.append(next_targets(log_ps[-1], remaining, self.priority))
            one = F.one_hot(chosen[-1], end + 1)[:, :end].bool()
            emitted, remaining, before = emitted | one, remaining & ~one, one.float()
        return torch.stack(log_ps, 1), torch.stack(chosen, 1)

    def _inputs(self, inputs: Tensor) -> Tensor:
        """As they might have been as well."""
        if inputs.dtype == torch.uint8:
            pixels = inputs.float() / 255
            if not self.moved:
                return pixels
            with in_full(inputs):
                return whole_pictures(pixels, pixels.shape[2])  # what a label is of may be anywhere
        kept = torch.rand(inputs.shape[:2], device=inputs.device) >= self.words_dropped
        kept[:, 0] |= ~(kept & (inputs != 0).any(2)).any(1)  # never all of them
        return inputs * kept[..., None]


def _priority(targets: Tensor, order: str) -> Tensor | None:
    """How early each label is asked for, (c,); None: the model chooses."""
    counts = targets.sum(0).double()
    tie = -torch.arange(len(counts), dtype=torch.float64) / (len(counts) + 1)  # the first of equals, either way
    return {"frequent_first": counts + tie, "rare_first": tie - counts}.get(order)
