"""What weights are worth as a beginning: a whole network trained on few labelled pictures, class-balanced."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embed.backbones import Backbone
from training.ahead import keeping_memory
from training.augment import View, Views
from training.loop import rate_at
from udr.devices import fast_dtype
from udr.encoder import autocast
from udr.errors import DataError
from udr.types import Progress

__all__ = ["balanced", "finetuned_accuracy"]

STEPS = 400  # whatever the number of pictures: few pictures are seen more often
BATCH = 64  # pictures of a step at most
RATE, DECAY, WARMUP = 1e-3, 0.05, 0.1  # AdamW's height and decay; share of steps in which the rate rises
AREA = (0.4, 1.0)  # of crops; with a mirror the only augmentation
AT_ONCE = 512  # pictures in one forward pass


def balanced(classes: NDArray[np.int64], share: float, seed: int = 0) -> NDArray[np.int64]:
    """Rows of `share` of the pictures, equally many of each class and one at least, in order.

    Raises:
        DataError: a class has fewer pictures than its part.
    """
    known = np.unique(classes)
    each = max(1, round(share * len(classes) / len(known)))
    draw, found = np.random.default_rng([seed, each]), []
    for label in known:
        rows = np.flatnonzero(classes == label)
        if len(rows) < each:
            raise DataError(f"class {label} has {len(rows)} pictures; {each} of each are wanted for {share:.0%}")
        found.append(draw.permutation(rows)[:each])
    return np.sort(np.concatenate(found))


class _Classifier(nn.Module):
    """A backbone and a linear layer on its pooled features, whose scale a normalisation takes away."""

    def __init__(self, backbone: Backbone, count: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.BatchNorm1d(backbone.dim, affine=False)
        self.head = nn.Linear(backbone.dim, count)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.backbone.pooled(pictures)))
        return logits.float()


def finetuned_accuracy(
    backbone: Backbone,
    pixels: NDArray[np.uint8],
    classes: NDArray[np.int64],
    asked: NDArray[np.uint8],
    answers: NDArray[np.int64],
    seed: int = 0,
    progress: Progress | None = None,
) -> float:
    """Share of asked pictures that a copy of the whole network, trained on the labelled ones, classifies right.

    One recipe for all weights, trained or random: so two numbers differ by their beginnings alone. Order, crops and
    mirrors are functions of (seed, step).

    Shape: pixels (m, 3, s, s), classes (m,), asked (n, 3, s, s), answers (n,).

    Raises:
        DataError: fewer than two labelled pictures.
    """
    if len(pixels) < 2:
        raise DataError("fine-tuning wants two labelled pictures at least; give more, or leave the probe out")
    device = backbone.device
    count = int(max(classes.max(), answers.max())) + 1
    model = _Classifier(copy.deepcopy(backbone), count).requires_grad_().to(device).train()
    views = Views([View(AREA, (0, 0, 0, 0), jittered=0, grey=0)], backbone.size)
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE)
    mixed = fast_dtype(device.type) == "bfloat16"
    generator = torch.Generator().manual_seed(seed)
    with keeping_memory(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(STEPS):
            rows = torch.randperm(len(pixels), generator=generator)[:BATCH].numpy()
            (view,) = views(torch.from_numpy(pixels[rows]).to(device), generator)
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate_at(step, STEPS, WARMUP)
            with autocast(device, mixed):
                logits = model(view)
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(classes[rows]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if progress:
                progress(step + 1, STEPS)
    return _accuracy(model.eval(), asked, answers)


def _accuracy(model: nn.Module, asked: NDArray[np.uint8], answers: NDArray[np.int64]) -> float:
    right, device = 0, next(model.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(asked), AT_ONCE):
            part = torch.from_numpy(np.array(asked[start : start + AT_ONCE])).to(device).float() / 255
            right += int((model(part).argmax(1).cpu().numpy() == answers[start : start + AT_ONCE]).sum())
    return right / len(asked)
