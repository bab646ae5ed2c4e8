"""What frozen features are worth: neighbours, a linear classifier, and whether they have collapsed."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from udr.types import FloatArray

__all__ = ["FeatureNetwork", "features", "knn_accuracy", "linear_accuracy", "spread"]

AT_ONCE = 512  # pictures in one forward pass, fewer of large ones and of clips
VALUES = 1 << 25  # of pixels in one forward pass
CELLS = 1 << 24  # similarities at a time
STEPS = 200  # of L-BFGS at most


class FeatureNetwork(Protocol):
    """A backbone of pictures or of clips."""

    dim: int
    training: bool

    @property
    def device(self) -> torch.device: ...
    def pooled(self, pixels: torch.Tensor) -> torch.Tensor: ...  # (n, dim)
    def train(self, mode: bool = True) -> object: ...
    def eval(self) -> object: ...


def features(backbone: FeatureNetwork, pixels: NDArray[np.uint8]) -> FloatArray:
    """Pooled features without augmentation, float32 (n, d); training mode is kept.

    Shape: pictures (n, 3, size, size), or clips (n, t, 3, size, size) for a backbone of clips.
    """
    device, was_training = backbone.device, backbone.training
    backbone.eval()
    found = np.empty((len(pixels), backbone.dim), np.float32)
    at_once = max(1, min(AT_ONCE, VALUES // int(np.prod(pixels.shape[1:]))))
    with torch.inference_mode():
        for start in range(0, len(pixels), at_once):
            part = torch.from_numpy(np.array(pixels[start : start + at_once])).to(device).float() / 255
            found[start : start + len(part)] = backbone.pooled(part).float().cpu().numpy()
    backbone.train(was_training)
    return found


def knn_accuracy(
    bank: FloatArray,
    classes: NDArray[np.int64],
    queries: FloatArray,
    answers: NDArray[np.int64],
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Share of queries whose class the `k` nearest of the bank vote for, each with weight exp(cosine / temperature).

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv
    1805.01978, section 3.4.

    Shape: bank (m, d), classes (m,), queries (n, d), answers (n,).
    """
    bank, queries = _unit(bank), _unit(queries)
    k, right = min(k, len(bank)), 0
    step = max(1, CELLS // len(bank))
    for start in range(0, len(queries), step):
        sims = queries[start : start + step] @ bank.T
        near = np.argpartition(-sims, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(sims, near, axis=1) / temperature)
        votes = np.zeros((len(sims), int(max(classes.max(), answers.max())) + 1))
        for i in range(k):
            np.add.at(votes, (np.arange(len(sims)), classes[near[:, i]]), weights[:, i])
        right += int((votes.argmax(1) == answers[start : start + step]).sum())
    return right / len(queries)


def linear_accuracy(
    bank: FloatArray,
    classes: NDArray[np.int64],
    queries: FloatArray,
    answers: NDArray[np.int64],
    penalties: tuple[float, ...] = (1e-5, 1e-3),
) -> float:
    """Share of queries that a logistic regression on standardised features classifies right.

    The penalty (of the squared weights) is chosen on a tenth of the bank that is held back.

    Shape: as `knn_accuracy`.
    """
    mean, deviation = bank.mean(0), bank.std(0) + 1e-6
    x, q = ((torch.from_numpy((v - mean) / deviation)) for v in (bank, queries))
    y = torch.from_numpy(classes)
    count = int(max(classes.max(), answers.max())) + 1
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    held, kept = order[: len(x) // 10], order[len(x) // 10 :]
    scores = {
        p: float((_fitted(x[kept], y[kept], count, p)(x[held]).argmax(1) == y[held]).float().mean()) for p in penalties
    }
    model = _fitted(x, y, count, max(scores, key=lambda p: scores[p]))
    return float((model(q).argmax(1) == torch.from_numpy(answers)).float().mean())


def _fitted(x: torch.Tensor, y: torch.Tensor, count: int, penalty: float) -> nn.Linear:
    model = nn.Linear(x.shape[1], count)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) + penalty * model.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return model.requires_grad_(False)


def spread(vectors: FloatArray) -> float:
    """How far features fill their space: 1 when spread evenly over the sphere, 0 when all are one.

    √d times the mean standard deviation of the coordinates of normalised vectors (n, d).
    """
    return float(_unit(vectors).std(0).mean() * vectors.shape[1] ** 0.5)


def _unit(vectors: FloatArray) -> FloatArray:
    normed: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return normed
