"""How well many tasks are done: a number each, and what learning them together is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embed.multi_task_nets import DenseKind, MultiTaskNet
from training.annotated import UNKNOWN, Annotated
from training.probes import VALUES, spread
from udr.errors import DataError
from udr.types import FloatArray

__all__ = ["LOWER_IS_BETTER", "PRIMARY", "Confusion", "Depths", "Overlap", "delta_mtl", "evaluate_tasks", "primary"]

AT_ONCE = 256  # pictures in one forward pass
THRESHOLDS = np.linspace(0, 1, 101)[1:-1]
PRIMARY = {"segmentation": "miou", "depth": "rmse", "edges": "f", "saliency": "f"}  # of each kind, for Δ_MTL
LOWER_IS_BETTER = ("rmse", "abs_rel", "bce")
EMBEDDING = "embedding"  # beside the tasks, what is said of vectors


class Confusion:
    """Mean intersection over union of classes, over all pixels of all pictures.

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes + 1, classes), np.int64)  # true, said; the last row is of classes never learnt

    def add(self, said: NDArray[np.int64], true: NDArray[np.uint8]) -> None:
        """Count pixels (n, h, w), but for unknown ones."""
        known, classes = true != UNKNOWN, self.counts.shape[1]
        pairs = np.minimum(true[known].astype(np.int64), classes) * classes + said[known]
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def read(self) -> dict[str, float]:
        """`miou`, over known classes that some pixel is or is said to be."""
        own = self.counts[:-1]
        both = np.diag(own)
        either = self.counts.sum(0) + own.sum(1) - both
        return {"miou": float((both[either > 0] / either[either > 0]).mean())}


class Depths:
    """Errors of depths over all known pixels: `rmse`, and `abs_rel`, the mean of |said − true| / true."""

    def __init__(self) -> None:
        self.squares = self.shares = 0.0
        self.count = 0

    def add(self, said: FloatArray, true: FloatArray) -> None:
        """Count pixels (n, h, w); a true depth of 0 is none."""
        known = true > 0
        off = said[known].astype(np.float64) - true[known]
        self.squares += float((off**2).sum())
        self.shares += float((abs(off) / true[known]).sum())
        self.count += int(known.sum())

    def read(self) -> dict[str, float]:
        """Both errors; 0 where no pixel is known."""
        return {"rmse": (self.squares / max(1, self.count)) ** 0.5, "abs_rel": self.shares / max(1, self.count)}


class Overlap:
    """Edges and saliency: `f`, the best F over thresholds, one for all pictures, and `bce`, plain cross-entropy.

    F = (1 + β²) · precision · recall / (β² · precision + recall), pixel by pixel, without the tolerance of a pixel or
    two that benchmarks of contours allow: labels here are exact. Source: β² = 0.3 for saliency, Achanta et al. 2009,
    "Frequency-tuned salient region detection", equation 6.

    Args:
        beta2: β².
    """

    def __init__(self, beta2: float = 1.0) -> None:
        self.beta2 = beta2
        self.hits, self.said = (np.zeros(len(THRESHOLDS), np.int64) for _ in range(2))
        self.true = self.count = 0
        self.nats = 0.0

    def add(self, said: FloatArray, true: NDArray[np.uint8]) -> None:
        """Count pixels (n, h, w), said as probabilities."""
        flat, positive = said.ravel(), true.ravel() > 0
        self.hits += _at_least(flat[positive])
        self.said += _at_least(flat)
        self.true += int(positive.sum())
        self.count += flat.size
        right = np.where(positive, flat, 1 - flat).astype(np.float64)
        self.nats -= float(np.log(np.maximum(right, 1e-7)).sum())

    def read(self) -> dict[str, float]:
        """Both numbers; F is 0 where nothing is right at any threshold."""
        precision, recall = self.hits / np.maximum(1, self.said), self.hits / max(1, self.true)
        below = self.beta2 * precision + recall
        f = (1 + self.beta2) * precision * recall / np.where(below > 0, below, 1)
        return {"f": float(f.max()), "bce": self.nats / max(1, self.count)}


def _at_least(values: FloatArray) -> NDArray[np.int64]:
    """How many reach each threshold."""
    reached = np.searchsorted(THRESHOLDS, values, side="right")  # thresholds that each value reaches
    counts = np.bincount(reached, minlength=len(THRESHOLDS) + 1)
    found: NDArray[np.int64] = counts[::-1].cumsum()[::-1][1:]
    return found


def primary(found: Mapping[str, Mapping[str, float]], kinds: Mapping[str, DenseKind]) -> dict[str, tuple[float, bool]]:
    """Of each task of `evaluate_tasks` the measure that Δ_MTL takes, and whether less is better."""
    names = {task: PRIMARY[kinds[task]] if task in kinds else "accuracy" for task in found if task != EMBEDDING}
    return {task: (found[task][name], name in LOWER_IS_BETTER) for task, name in names.items()}


def delta_mtl(tasks: Mapping[str, tuple[float, bool]], alone: Mapping[str, float]) -> float:
    """Δ_MTL = 1/T Σ_i (−1)^{l_i} (M_i − B_i) / B_i, as a share: above 0, tasks are better learnt together.

    Source: Maninis et al. 2019, arXiv 1904.08918, equation 5.

    Args:
        tasks: of each its measure M_i, and whether less is better (l_i).
        alone: of each B_i, the measure of a network that learnt it alone.

    Raises:
        DataError: a B_i of 0, of which nothing is a share.
    """
    if nothing := [task for task in tasks if alone[task] == 0]:
        raise DataError(f"{', '.join(nothing)}: learnt alone, the measure is 0, so no change of it can be told")
    gains = [(-1 if lower else 1) * (value - alone[task]) / alone[task] for task, (value, lower) in tasks.items()]
    return sum(gains) / len(gains)


def evaluate_tasks(net: MultiTaskNet, data: Annotated, kinds: Mapping[str, DenseKind]) -> dict[str, dict[str, float]]:
    """Of each task its measures, and of `embedding` its spread (`training.probes.spread`); training mode is kept.

    Args:
        kinds: of the network's dense tasks.
    """
    counters: dict[str, Any] = {}
    for task in net.dense:
        if kinds[task] == "segmentation":
            counters[task] = Confusion(net.dense[task])
        else:
            counters[task] = Depths() if kinds[task] == "depth" else Overlap(0.3 if kinds[task] == "saliency" else 1.0)
    right = {task: [0, 0] for task in net.attributes}
    vectors: list[FloatArray] = []
    was_training = net.training
    net.eval()
    with torch.inference_mode():
        # MTI-Net holds a map of every scale beside the last one
        per_picture = data.pixels[0].size + 5 * sum(net.dense.values()) * net.size**2
        at_once = max(1, min(AT_ONCE, VALUES // per_picture))
        for start in range(0, len(data), at_once):
            rows = slice(start, start + at_once)
            outputs = net(torch.from_numpy(np.array(data.pixels[rows])).to(net.device).float() / 255)
            vectors.append(outputs.embedding.float().cpu().numpy())
            for task in net.dense:
                logits = outputs.tasks[task].float().cpu()
                counters[task].add(*_said(kinds[task], logits, data.dense[task][rows]))
            for task, counts in right.items():
                true, said = data.attributes[task][rows], outputs.tasks[task].argmax(1).cpu().numpy()
                counts[0] += int(((said == true) & (true >= 0)).sum())
                counts[1] += int((true >= 0).sum())
    net.train(was_training)
    found: dict[str, dict[str, float]] = {task: counter.read() for task, counter in counters.items()}
    found |= {task: {"accuracy": counts[0] / max(1, counts[1])} for task, counts in right.items()}
    return found | {EMBEDDING: {"spread": spread(np.concatenate(vectors))}}


def _said(kind: DenseKind, logits: torch.Tensor, true: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if kind == "segmentation":
        return logits.argmax(1).numpy(), true
    if kind == "depth":
        return logits[:, 0].numpy(), true.astype(np.float32)
    return logits[:, 0].sigmoid().numpy(), true
